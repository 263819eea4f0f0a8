"""A load generator for chat servers: ``headrace bench``, and ``measure`` for other programs. See
``deploy/BENCH.md``."""

from __future__ import annotations

from deploy.bench.controller import BenchError, Snapshot, Watch, measure
from deploy.bench.plan import ClosedLoop, Load, OpenLoop, Plan, Target, Workload
from deploy.bench.ramp import knee_of
from deploy.bench.report import report_of
from deploy.bench.result import Report, Step

__all__ = [
    "BenchError",
    "ClosedLoop",
    "Load",
    "OpenLoop",
    "Plan",
    "Report",
    "Snapshot",
    "Step",
    "Target",
    "Watch",
    "Workload",
    "knee_of",
    "measure",
    "report_of",
]
