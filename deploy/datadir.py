"""The folder that one running ``headrace up`` owns: its lock, its secret and ``run.json``."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["nats", "redis", "worker", "gateway"]


class RunningPart(msgspec.Struct, frozen=True):
    """``port``: where it is reached; a worker's is its health and metrics port."""

    kind: Kind
    id: str
    pid: int
    port: int


class RunFile(msgspec.Struct, frozen=True):
    """``run.json``: there while everything runs, from the moment all parts were ready."""

    url: str
    parts: tuple[RunningPart, ...]


class DataDirBusy(Exception):
    """Another ``headrace up`` runs on the folder."""


class DataDir:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._run_file = self.path / "run.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Raises ``DataDirBusy``. The kernel frees the lock whatever way this process ends."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        # never unlinked: a lock on a name that another process replaces would be no lock
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(descriptor, 32).decode(errors="replace").strip()
                raise DataDirBusy(
                    f"{self.path} is in use by another `headrace up` (pid {owner}); "
                    "stop it, or choose another folder with --data-dir"
                ) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            self.remove_run_file()  # of one that was killed
            yield
        finally:
            os.close(descriptor)

    def secret(self) -> str:
        """The same one on every start, so that conversations and caches outlive a restart."""
        path = self.path / "secret"
        if not path.exists():
            self._write_private(path, secrets.token_hex(32).encode())
        return path.read_text().strip()

    def log_file(self, part_id: str) -> Path:
        return self.path / "logs" / f"{part_id}.log"

    def rotate_logs(self) -> None:
        """Keeps the logs of the run before as ``.log.1``."""
        logs = self.path / "logs"
        logs.mkdir(exist_ok=True)
        for log in logs.glob("*.log"):
            log.replace(log.with_suffix(".log.1"))

    def write_run_file(self, run: RunFile) -> None:
        self._write_private(self._run_file, msgspec.json.format(msgspec.json.encode(run)) + b"\n")

    def remove_run_file(self) -> None:
        self._run_file.unlink(missing_ok=True)

    def _write_private(self, path: Path, content: bytes) -> None:
        """Whole or not at all, and readable by the owner only."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
