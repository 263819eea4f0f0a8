"""Lets a burst of requests in one by one: so many begin in a pass of the event loop, in the order in which
they came. Between passes what was let in goes on: the first are with a worker, and their tokens are shown,
while the last are still to be read. Without it each stage would be done for all of them before the next, and
the first would be answered with the last.

Nothing is held back for longer than the loop is busy: whatever a request waits for once it is in (Redis, the
queue's ack, a long prompt's thread) delays nobody. Must not know what is let in.
"""

from __future__ import annotations

import asyncio
from collections import deque

BEGIN = 4  # a pass: few enough for tokens to go out between, enough to ask Redis for several at once


class Turnstile:
    """Of one event loop. Those that wait are bounded by what begins them: the connections."""

    def __init__(self) -> None:
        self._free = BEGIN
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def enter(self) -> None:
        """Returns at once where nothing is going on."""
        if self._free and not self._waiting:
            self._free -= 1
            self._turn_soon()
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _turn_soon(self) -> None:
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        self._free = BEGIN
        while self._free and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its request was given up
                turn.set_result(None)
                self._free -= 1
        if self._free < BEGIN:
            self._turn_soon()
