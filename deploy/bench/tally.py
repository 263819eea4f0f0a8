"""What load processes count, in forms that add up: over processes, and over the messages of one."""

from __future__ import annotations

import msgspec

from deploy.bench.histogram import Histogram
from deploy.bench.streams import Outcome


class Window(msgspec.Struct):
    """One second of a measurement, by when things happened. ``tokens``: those of an answer are spread over
    its deltas once its usage is known. ``lag``: how late the event loop came to a timer; ``late``: how late
    requests were sent; ``cpu_s``: of the process."""

    sent: int = 0
    ended: dict[Outcome, int] = {}
    deltas: int = 0
    tokens: float = 0.0
    ttft: Histogram = msgspec.field(default_factory=Histogram)
    gap: Histogram = msgspec.field(default_factory=Histogram)
    e2e: Histogram = msgspec.field(default_factory=Histogram)
    late: Histogram = msgspec.field(default_factory=Histogram)
    lag: Histogram = msgspec.field(default_factory=Histogram)
    cpu_s: float = 0.0

    def add(self, other: Window) -> None:
        self.sent += other.sent
        _add_counts(self.ended, other.ended)
        self.deltas += other.deltas
        self.tokens += other.tokens
        self.cpu_s += other.cpu_s
        for name in ("ttft", "gap", "e2e", "late", "lag"):
            histogram: Histogram = getattr(self, name)
            histogram.add(getattr(other, name))


class Totals(msgspec.Struct):
    """Of the responses that were due within the measured time. Durations are of the completed ones, but
    ``ttft``, which is of all that began. ``told_usage``: whose tokens the server counted; else a delta counts
    as one."""

    due: int = 0
    ended: dict[Outcome, int] = {}
    reasons: dict[str, int] = {}
    ttft: Histogram = msgspec.field(default_factory=Histogram)
    e2e: Histogram = msgspec.field(default_factory=Histogram)
    tpot: Histogram = msgspec.field(default_factory=Histogram)
    stall: Histogram = msgspec.field(default_factory=Histogram)
    completed: int = 0
    completed_asked_tokens: int = 0
    completed_tokens: int = 0
    completed_deltas: int = 0
    completed_arrivals: int = 0
    told_usage: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    last_end_s: float = 0.0  # since the measurement began
    connections: int = 0  # opened, in all of the run

    def add(self, other: Totals) -> None:
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("ttft", "e2e", "tpot", "stall"):
            histogram: Histogram = getattr(self, name)
            histogram.add(getattr(other, name))
        _add_counts(self.ended, other.ended)
        _add_counts(self.reasons, other.reasons)
        self.last_end_s = max(self.last_end_s, other.last_end_s)


_SUMMED = (
    "due",
    "completed",
    "completed_asked_tokens",
    "completed_tokens",
    "completed_deltas",
    "completed_arrivals",
    "told_usage",
    "prompt_tokens",
    "cached_tokens",
    "connections",
)


def _add_counts(to: dict[Outcome, int] | dict[str, int], more: dict[Outcome, int] | dict[str, int]) -> None:
    for key, count in more.items():
        to[key] = to.get(key, 0) + count  # type: ignore[index, call-overload]
