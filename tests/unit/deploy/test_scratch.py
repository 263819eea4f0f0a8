"""Folders of owners that live are left alone, those of the dead are removed."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from deploy.scratch import scratch_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_its_owners_alone_and_goes_with_its_use(temporary: Path) -> None:
    with scratch_folder("a-") as folder:
        assert folder.parent == temporary
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "file").touch()
    assert list(temporary.iterdir()) == []


def test_only_what_nobody_holds_is_removed(temporary: Path) -> None:
    left, other, target = temporary / "a-left", temporary / "b-left", temporary / "target"
    for folder in (left, other, target):
        folder.mkdir()
        (folder / "file").touch()
    (temporary / "a-link").symlink_to(target)
    (temporary / "a-file").touch()
    with scratch_folder("a-") as first, scratch_folder("a-") as second:
        assert first.is_dir()
        assert second.is_dir()
    assert {path.name for path in temporary.iterdir()} == {"b-left", "target", "a-link", "a-file"}
    assert (target / "file").exists()
