"""The folder of one running `headrace up`."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from deploy.datadir import DataDir, DataDirBusy, RunFile, RunningPart

RUN = RunFile("http://127.0.0.1:8080", (RunningPart("worker", "worker-1", 12, 8081),))


def test_only_one_at_a_time(tmp_path: Path) -> None:
    with (
        DataDir(tmp_path).locked(),
        pytest.raises(DataDirBusy, match=r"pid [0-9]+"),
        DataDir(tmp_path).locked(),
    ):
        pytest.fail("locked twice")
    with DataDir(tmp_path).locked():
        assert (tmp_path / "lock").exists()


def test_run_file(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.write_run_file(RUN)
    path = tmp_path / "run.json"
    assert json.loads(path.read_text()) == {
        "url": "http://127.0.0.1:8080",
        "parts": [{"kind": "worker", "id": "worker-1", "pid": 12, "port": 8081}],
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_stale_run_file_goes_with_the_lock(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.write_run_file(RUN)
    with data_dir.locked():
        assert not (tmp_path / "run.json").exists()


def test_the_secret_stays(tmp_path: Path) -> None:
    secret = DataDir(tmp_path).secret()
    assert len(secret) >= 32
    assert DataDir(tmp_path).secret() == secret
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_logs_of_the_run_before_are_kept(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.rotate_logs()
    data_dir.log_file("nats").write_text("first")
    data_dir.rotate_logs()
    assert not data_dir.log_file("nats").exists()
    assert (tmp_path / "logs" / "nats.log.1").read_text() == "first"
