"""When each replay begins. Pure: times in, seconds since the beginning out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AT_ONCE = 8  # without a pace
PACED_AT_ONCE = 256  # a pace that the workers do not keep up with must not pile up without end


@dataclass(frozen=True, slots=True)
class Pace:
    """``speed``: the originals' gaps, so many times faster. ``rate``: so many a second. Neither: each as soon
    as there is room among ``at_once``, which no pace exceeds."""

    speed: float | None = None
    rate: float | None = None
    at_once: int = AT_ONCE

    def starts(self, stored_unix_ms: Sequence[int]) -> list[float]:
        """``stored_unix_ms``: of the originals, in the order in which they are to run."""
        if self.rate is not None:
            return [number / self.rate for number in range(len(stored_unix_ms))]
        if self.speed is not None and stored_unix_ms:
            first = stored_unix_ms[0]
            return [max(0, at - first) / 1000 / self.speed for at in stored_unix_ms]
        return [0.0] * len(stored_unix_ms)
