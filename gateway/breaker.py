"""When a service that failed may be asked again: after a pause, by one request alone. Pure: time comes in."""

from __future__ import annotations


class Breaker:
    """``pause_s``: how long nobody asks after a failure. Then one request does, and the others go on without
    until it has an answer; one that never tells what it found is forgotten after ``probe_s``."""

    def __init__(self, *, pause_s: float, probe_s: float) -> None:
        self._pause_s = pause_s
        self._probe_s = probe_s
        self._until_s: float | None = None  # None: it answers

    @property
    def is_open(self) -> bool:
        """It failed last."""
        return self._until_s is not None

    def allows(self, now_s: float) -> bool:
        """Whether the caller may ask. True where it failed last: the caller is the one who finds out."""
        if self._until_s is None:
            return True
        if now_s < self._until_s:
            return False
        self._until_s = now_s + self._probe_s
        return True

    def failed(self, now_s: float) -> bool:
        """True where it did not fail before."""
        first = self._until_s is None
        self._until_s = now_s + self._pause_s
        return first

    def answered(self) -> bool:
        """True where it failed before."""
        recovered = self._until_s is not None
        self._until_s = None
        return recovered
