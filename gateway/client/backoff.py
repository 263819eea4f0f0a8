"""How long to wait before trying again. Pure: chance is an argument."""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.1
LIMIT_S = 5.0


class Backoff:
    """At once, then exponentially longer; each wait is half fixed and half chance, so that the clients of a
    gateway that died do not come back in step. ``chance`` gives numbers from 0 to 1."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._failures = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """``at_least_s``: what a server asked for (Retry-After)."""
        ceiling = min(LIMIT_S, FIRST_S * 2.0 ** (self._failures - 1)) if self._failures else 0.0
        self._failures = min(self._failures + 1, 16)
        spread = 0.5 + 0.5 * self._chance()
        return max(ceiling * spread, at_least_s * (0.5 + spread))

    def reset(self) -> None:
        self._failures = 0
