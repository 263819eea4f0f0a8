"""How long to wait before a crashed process is started again. Pure: the clock comes in."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S = 0.2
LONGEST_S = 10.0
HEALTHY_S = 30.0


@dataclass(slots=True)
class Backoff:
    """0.2 s, doubling to 10 s; from the beginning again after 30 s of health."""

    crashes: int = 0  # in a row

    def crashed(self, healthy_s: float) -> float:
        """``healthy_s``: how long it had been ready (0: never). Returns the seconds to wait."""
        if healthy_s >= HEALTHY_S:
            self.crashes = 0
        self.crashes += 1
        return min(FIRST_S * (1 << min(self.crashes - 1, 16)), LONGEST_S)
