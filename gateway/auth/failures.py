"""How often each address has failed within its last minute. Pure: time comes in.

It spares the log and tells a misconfigured client to stop; guessing 256 bits needs no limit. Whoever shows a
good credential is let in whatever others behind the same address do.
"""

from __future__ import annotations

from collections import OrderedDict

WINDOW_S = 60.0
MAX_ADDRESSES = 10_000  # beyond, the one that has been seen longest ago is forgotten


class Failures:
    def __init__(self, per_minute: int) -> None:
        self._limit = per_minute
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, and how many

    def count(self, address: str, now_s: float) -> int:
        """One more; returns how many there were in this window."""
        since_s, number = self._windows.pop(address, (now_s, 0))
        if now_s - since_s >= WINDOW_S:
            since_s, number = now_s, 0
        self._windows[address] = (since_s, number + 1)
        if len(self._windows) > MAX_ADDRESSES:
            self._windows.popitem(last=False)
        return number + 1

    def exceeds(self, number: int) -> bool:
        return number > self._limit
