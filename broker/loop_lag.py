"""How late the event loop of this process runs what is due: everything that blocks it (parsing, encoding, a
garbage collection, a machine that is too busy) delays every stream by as much. Must not know what did it.

A timer every ``PERIOD_S`` and one observation of it: about 10 us each time, 0.02 % of a core.
"""

from __future__ import annotations

import asyncio
import logging
import time

from broker.metrics import LOOP_LAG

log = logging.getLogger(__name__)

PERIOD_S = 0.05  # what blocks for longer is always seen, with up to so much of it missing
TELL_EVERY_S = 30.0
START_S = 10.0  # while a process starts nobody waits for it: no line


class Lateness:
    """What is worth a line in the log: the first time at once, then what has come together since. Pure.
    ``limit_s`` 0: nothing is, nor before ``from_s``."""

    def __init__(self, limit_s: float, from_s: float) -> None:
        self._limit_s = limit_s
        self._from_s = from_s
        self._told_at_s = from_s - TELL_EVERY_S
        self._count = 0
        self._worst_s = 0.0

    def note(self, late_s: float, now_s: float) -> tuple[int, float] | None:
        """How often it was late since the last line, and the worst of that in seconds; None: not now."""
        if self._limit_s and late_s >= self._limit_s and now_s >= self._from_s:
            self._count += 1
            self._worst_s = max(self._worst_s, late_s)
        if not self._count or now_s - self._told_at_s < TELL_EVERY_S:
            return None
        told = self._count, self._worst_s
        self._told_at_s, self._count, self._worst_s = now_s, 0, 0.0
        return told


class LoopLag:
    """Of the running loop, from ``begin`` to ``end``. ``warn_ms``: beyond, the log says so (0: never)."""

    def __init__(self, warn_ms: float) -> None:
        self._warn_ms = warn_ms
        self._lateness = Lateness(warn_ms / 1000, time.monotonic() + START_S)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    def begin(self) -> None:
        self._due_s = time.monotonic() + PERIOD_S  # the loop's own clock stands still while a callback runs
        self._timer = self._loop.call_later(PERIOD_S, self._look)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now_s = time.monotonic()
        late_s = max(0.0, now_s - self._due_s)
        LOOP_LAG.observe(late_s)
        told = self._lateness.note(late_s, now_s)
        if told is not None:
            count, worst_s = told
            log.warning(
                "the event loop was late %d times, by up to %.0f ms (logging.loop_lag_ms is %g)",
                count,
                worst_s * 1000,
                self._warn_ms,
            )
        self.begin()
