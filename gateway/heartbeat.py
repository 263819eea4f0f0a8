"""The heartbeat of a server's WebSockets: one timer for all of them, where uvicorn has two for each. Must not
know what a connection does at a beat.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

SLOTS = 100  # of the wheel: so many looks a turn, each at a hundredth of the connections


class Beating(Protocol):
    def beat(self, now_s: float, payload: bytes) -> None:
        """Once a turn. ``now_s``: monotonic. ``payload``: of a ping sent now."""
        ...


class Heartbeat:
    """``turn_s``: between two beats of a connection, the first of which comes a turn after it has joined."""

    def __init__(self, turn_s: float) -> None:
        self._slots: list[dict[Beating, None]] = [{} for _ in range(SLOTS)]
        self._slot_of: dict[Beating, int] = {}
        self._step_s = turn_s / SLOTS
        self._at = 0
        self._pings = 0
        self._timer: asyncio.TimerHandle | None = None

    def join(self, member: Beating) -> None:
        self._slots[self._at][member] = None
        self._slot_of[member] = self._at
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._step_s, self._step)

    def leave(self, member: Beating) -> None:
        """Safe to call twice."""
        at = self._slot_of.pop(member, None)
        if at is not None:
            del self._slots[at][member]

    def _step(self) -> None:
        self._timer = None
        if not self._slot_of:
            return
        self._timer = asyncio.get_running_loop().call_later(self._step_s, self._step)
        self._at = (self._at + 1) % SLOTS
        self._pings = (self._pings + 1) & 0xFFFFFFFF
        now_s, payload = time.monotonic(), self._pings.to_bytes(4, "big")
        for member in list(self._slots[self._at]):
            member.beat(now_s, payload)
