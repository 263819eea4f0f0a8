"""What the kernel tells of processes that are not this one's children."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def children(pid: int) -> list[int]:
    """Direct ones, of whichever of its threads; none where the process is gone."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    except (FileNotFoundError, ProcessLookupError):  # it, or one of its threads, ended meanwhile
        pass
    return found


def descendants(pid: int) -> Iterator[int]:
    """All below it, parents first."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def is_running(pid: int) -> bool:
    """A zombie that nobody has waited for yet runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
