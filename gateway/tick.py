"""Calls whatever asked for it once, behind all that runs now: what one read from the broker brings a response
is shown as one, and a thousand responses with news cost one callback. Must not know what is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Tick:
    """Of one event loop. What is called must not raise: the others of this tick would be left out."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []

    def soon(self, call: Callable[[], None]) -> None:
        if not self._due:
            asyncio.get_running_loop().call_soon(self._run)
        self._due.append(call)

    def _run(self) -> None:
        due, self._due = self._due, []
        for call in due:
            call()
