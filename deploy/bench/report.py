"""Puts steps and where they were measured into a ``Report``, and writes it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from deploy.bench.plan import Plan
from deploy.bench.ramp import knee_of
from deploy.bench.result import Machine, Report, Step


def report_of(
    plan: Plan, steps: Sequence[Step], *, began: datetime, title: str = "", command: Sequence[str] = ()
) -> Report:
    """``began``: with a time zone. The steps are put in the order of their loads."""
    steps = sorted(steps, key=lambda step: step.load.value)
    return Report(
        title=title or f"{plan.target.api} at {', '.join(plan.target.urls)}",
        command=list(command),
        began=began.astimezone(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        plan=plan,
        steps=steps,
        knee=knee_of(steps),
    )


def this_machine() -> Machine:
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        cpu=_cpu_name(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=platform.platform(),
        python=platform.python_version(),
        headrace=version("headrace"),
        uvloop=version("uvloop"),
    )


def as_json(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
