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
        return _state(Path(f"/proc/{pid}")) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_stopped(pid: int) -> bool:
    """With all of its threads, which take their time to hear of a SIGSTOP."""
    return all(_state(thread) == "T" for thread in Path(f"/proc/{pid}/task").iterdir())


def _state(folder: Path) -> str:
    """Of a process or a thread, by proc(5)'s letter. A name may hold anything, parentheses too."""
    return (folder / "stat").read_text().rpartition(")")[2].split()[0]
