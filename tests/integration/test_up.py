"""`headrace up` with real processes and real signals, on the simulated engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MARK = "TEST_UP_MARK"  # a variable that every descendant inherits: finds what is left running
LIMIT_S = 60


@dataclass
class Up:
    process: subprocess.Popen[bytes]
    data_dir: Path
    output: Path

    @property
    def run_file(self) -> Path:
        return self.data_dir / "run.json"

    def parts(self) -> dict[str, dict[str, object]]:
        return {part["id"]: part for part in json.loads(self.run_file.read_text())["parts"]}

    def pid(self, part: str) -> int:
        return int(str(self.parts()[part]["pid"]))

    def left_running(self) -> list[str]:
        """Command lines of what this one has started. Valkey overwrites its environment with its title;
        it is known by the folder it works in."""
        mark = f"{MARK}={self.data_dir}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = mark in (folder / "environ").read_bytes().split(b"\0")
                ours = ours or (folder / "cwd").readlink().is_relative_to(self.data_dir)
                if ours:
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found


@pytest.fixture
def start_up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*options: str, data_dir: Path | None = None) -> Up:
        up = begin(tmp_path, data_dir or tmp_path / "data", options)
        started.append(up)
        wait_until(lambda: up.run_file.exists() or up.process.poll() is not None, "it is up")
        assert up.run_file.exists(), up.output.read_text()
        return up

    yield start
    for up in started:
        up.process.kill()
        up.process.wait()


def begin(cwd: Path, data_dir: Path, options: tuple[str, ...]) -> Up:
    output = cwd / f"up-{len(list(cwd.glob('up-*.txt')))}.txt"  # of its own: an earlier one still writes
    argv = [sys.executable, "-P", "-m", "deploy.cli", "up", "--engine", "sim", "--port", "0", *options]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*argv, "--data-dir", str(data_dir)],
            cwd=cwd,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, MARK: str(data_dir)},
        )
    return Up(process, data_dir, output)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.02)


def status_of(url: str) -> int:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return int(answer.status)


def test_runs_every_part_and_stops_all(start_up: Callable[..., Up]) -> None:
    up = start_up("--workers", "2", "--gateways", "2")

    run = json.loads(up.run_file.read_text())
    assert set(run) == {"url", "parts"}
    assert [(part["kind"], part["id"]) for part in run["parts"]] == [
        ("nats", "nats"),
        ("redis", "redis"),
        ("worker", "worker-1"),
        ("worker", "worker-2"),
        ("gateway", "gateway-1"),
        ("gateway", "gateway-2"),
    ]
    assert all(set(part) == {"kind", "id", "pid", "port"} for part in run["parts"])
    assert len({part["port"] for part in run["parts"]}) == 6
    assert stat.S_IMODE(up.run_file.stat().st_mode) == 0o600
    assert stat.S_IMODE((up.data_dir / "secret").stat().st_mode) == 0o600
    assert run["url"] == f"http://127.0.0.1:{up.parts()['gateway-1']['port']}"
    assert status_of(f"{run['url']}/readyz") == 200
    for worker in ("worker-1", "worker-2"):
        assert status_of(f"http://127.0.0.1:{up.parts()[worker]['port']}/healthz") == 200
    wait_until(lambda: run["url"] in up.output.read_text(), "the URL is shown")

    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(LIMIT_S) == 0
    assert up.left_running() == []
    assert not up.run_file.exists()


def test_restarts_a_killed_worker_and_a_killed_broker(start_up: Callable[..., Up]) -> None:
    up = start_up()
    for part in ("worker-1", "nats", "gateway-1"):
        before = up.parts()[part]
        os.kill(up.pid(part), signal.SIGKILL)
        wait_until(lambda part=part, pid=before["pid"]: up.pid(part) != pid, f"{part} has a new pid")  # type: ignore[misc]
        assert up.parts()[part]["port"] == before["port"]
    url = json.loads(up.run_file.read_text())["url"]
    wait_until(lambda: _answers(f"{url}/readyz"), "it is ready again")
    assert "worker-1" in up.output.read_text()
    assert "was killed by SIGKILL" in up.output.read_text()


def test_chat_answers_each_line_with_one(start_up: Callable[..., Up]) -> None:
    up = start_up()
    url = json.loads(up.run_file.read_text())["url"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli", "chat", "--url", url],
        input=b"Hello\n\nAnd again\n",
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answers = done.stdout.splitlines()
    assert len(answers) == 2
    assert all(answers)


def _answers(url: str) -> bool:
    try:
        return status_of(url) == 200
    except OSError:
        return False


def test_nothing_survives_a_killed_supervisor(start_up: Callable[..., Up]) -> None:
    up = start_up("--workers", "2")
    assert len(up.left_running()) >= 6  # itself and five parts
    up.process.kill()
    wait_until(lambda: up.left_running() == [], "all parts are gone")


def test_starts_again_on_what_a_killed_one_left(start_up: Callable[..., Up]) -> None:
    first = start_up()
    secret = (first.data_dir / "secret").read_text()
    first.process.kill()
    wait_until(lambda: first.left_running() == [], "all parts are gone")
    stale = first.run_file.read_text()

    second = begin(first.output.parent, first.data_dir, ())
    try:
        wait_until(lambda: second.run_file.exists() and second.run_file.read_text() != stale, "it runs again")
        assert (second.data_dir / "secret").read_text() == secret
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(LIMIT_S) == 0
    finally:
        second.process.kill()
        second.process.wait()
    assert second.left_running() == []


def test_two_on_one_folder(start_up: Callable[..., Up], tmp_path: Path) -> None:
    up = start_up()
    other = begin(tmp_path, up.data_dir, ())
    assert other.process.wait(LIMIT_S) == 2
    refusal = other.output.read_text()
    assert f"in use by another `headrace up` (pid {up.process.pid})" in refusal
    assert len(refusal.splitlines()) == 1
    assert up.run_file.exists()


def test_two_ctrl_c_at_once_leave_nothing(start_up: Callable[..., Up]) -> None:
    up = start_up()
    up.process.send_signal(signal.SIGINT)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(LIMIT_S) == 0
    assert up.left_running() == []


def test_a_run_file_that_cannot_be_written_stops_nothing(start_up: Callable[..., Up]) -> None:
    up = start_up()
    (up.data_dir / f".run.json.{up.process.pid}").mkdir()  # as good as a full disk
    os.kill(up.pid("worker-1"), signal.SIGKILL)
    wait_until(lambda: up.output.read_text().count("worker-1: ready") == 2, "the worker is back")
    assert "run.json could not be written, and everything goes on" in up.output.read_text()
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(LIMIT_S) == 0
    assert up.left_running() == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopping_while_starting(tmp_path: Path, signum: signal.Signals) -> None:
    up = begin(tmp_path, tmp_path / "data", ())
    try:
        wait_until(lambda: "nats: starting" in up.output.read_text(), "it has begun")
        up.process.send_signal(signum)
        assert up.process.wait(LIMIT_S) == 0
        assert up.left_running() == []
        assert not up.run_file.exists()
    finally:
        up.process.kill()
        up.process.wait()


async def test_a_refused_configuration_is_one_line(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "deploy.cli", "up", "--engine", "sim", "--data-dir", str(tmp_path)),
        env={**os.environ, "HEADRACE_SIM__SLOTS": "many"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert errors.decode() == "headrace: HEADRACE_SIM__SLOTS: Expected `int`, got `str`\n"
