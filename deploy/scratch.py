"""A temporary folder that does not stay for ever where its owner is killed: the next owner of one removes it.

Whoever lives holds a lock on its folder, and the kernel drops that with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """For its owner alone. ``prefix``: what tells those of this kind from other temporary files. Raises
    ``OSError``."""
    _sweep(prefix)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        descriptor = _lock(folder)
        if descriptor is not None:
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        descriptor = _lock(folder)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """The lock's descriptor. None: somebody else has the folder, or took it between its making and this."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.fstat(descriptor)
        if mine.st_uid == os.getuid() and os.path.samestat(mine, os.stat(folder)):
            return descriptor
    except OSError:
        pass  # it is locked, or it has gone
    os.close(descriptor)
    return None
