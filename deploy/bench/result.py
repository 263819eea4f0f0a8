"""The result of a benchmark as ``--json`` writes it. What the names mean stands in ``deploy/BENCH.md``; a
change that breaks readers gets another ``VERSION``."""

from __future__ import annotations

from typing import Literal

import msgspec

from deploy.bench.histogram import Quantiles
from deploy.bench.plan import Load, Plan

VERSION = 1


class Responses(msgspec.Struct, frozen=True, kw_only=True):
    """How the responses that were due ended; they add up to ``due``."""

    due: int
    completed: int = 0
    refused: int = 0
    failed: int = 0
    broken: int = 0
    unreachable: int = 0
    timed_out: int = 0
    unfinished: int = 0
    dropped: int = 0


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Of the completed responses. ``counted_by``: the server's usage, or one a delta where it told none."""

    output: int
    asked: int
    prompt: int
    cached: int
    counted_by: Literal["usage", "deltas", "both"]
    per_delta: float
    per_arrival: float


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Within the measured time, whenever a response began. ``due_per_s`` is what was offered."""

    due_per_s: float
    completed_per_s: float
    tokens_per_s: float


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The load generator itself. ``cpu``: of a core, for each of its processes; ``machine_busy``: of all
    cores, whoever used them; ``complaints``: why the figures are not the server's alone."""

    cpu: list[float]
    cpu_us_per_delta: float
    lag_ms: Quantiles
    late_ms: Quantiles
    machine_busy: float
    connections: int
    complaints: list[str]

    @property
    def trusted(self) -> bool:
        return not self.complaints


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds, of one point in time."""

    p50: float
    p95: float
    p99: float


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One second. ``at_s``: since the measurement began, negative in the warm-up; None: nothing to tell."""

    at_s: int
    sent: int
    completed: int
    not_completed: int
    in_flight: int
    tokens_per_s: float
    ttft_ms: Spread | None
    gap_ms: Spread | None
    e2e_ms: Spread | None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement under one load."""

    load: Load
    span_s: float
    responses: Responses
    reasons: dict[str, int]
    ttft_ms: Quantiles
    gap_ms: Quantiles
    stall_ms: Quantiles
    tpot_ms: Quantiles
    e2e_ms: Quantiles
    tokens: TokenCounts
    throughput: Throughput
    client: Client
    series: list[Point]


class Knee(msgspec.Struct, frozen=True):
    """``step``: its index in the report; None: none was reached. ``why``: a sentence."""

    step: int | None
    why: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    cores: int
    cpu: str
    memory_gib: float
    system: str
    python: str
    headrace: str
    uvloop: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """``plan``: of the step that was measured first; the others differ in ``load``. ``steps``: by rising
    load. ``knee``: of a ramp."""

    version: int = VERSION
    title: str
    command: list[str]
    began: str  # ISO 8601, UTC
    machine: Machine
    plan: Plan
    steps: list[Step]
    knee: Knee | None = None
