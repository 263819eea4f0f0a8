"""Work that outlives the request it began with: tasks of one group, each named, ended with the group."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Background:
    """The number of tasks is bounded by what begins them: a few for each response."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def open(self) -> bool:
        return self._group is not None

    def attach(self, group: asyncio.TaskGroup | None) -> None:
        """From now on tasks are made in ``group``; None: no more."""
        self._group = group

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """A bug in the work ends the process. Nothing is begun where the group is ending: so is its work."""
        try:
            if self._group is None:
                raise RuntimeError("not running")
            task = self._group.create_task(work, name=name)
        except RuntimeError:  # what a task group says when it is shutting down
            work.close()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
