"""Shows how a measurement goes: a line that renews itself on a terminal, a line every few seconds
elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from deploy.bench.controller import Snapshot, Watch
from deploy.bench.table import ms

_LINE_EVERY_S = 5.0


@contextmanager
def shown(console: Console) -> Iterator[Watch]:
    if console.is_terminal:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            yield lambda snapshot: live.update(Text(line(snapshot), overflow="ellipsis"), refresh=True)
        return
    told: dict[str, float] = {}

    def tell(snapshot: Snapshot) -> None:
        key = str(snapshot.plan.load)
        if snapshot.at_s - told.get(key, -_LINE_EVERY_S) >= _LINE_EVERY_S:
            told[key] = snapshot.at_s
            console.print(line(snapshot), highlight=False, markup=False, soft_wrap=True)

    yield tell


def line(snapshot: Snapshot) -> str:
    plan, window = snapshot.plan, snapshot.window
    if plan.conversations:
        phase = f"{snapshot.at_s:.0f} s"
    elif snapshot.at_s < 0:
        phase = "warming up"
    elif snapshot.at_s < plan.duration_s:
        phase = f"{snapshot.at_s:.0f} of {plan.duration_s} s"
    else:
        phase = "finishing"
    parts = [
        f"{plan.load}",
        phase,
        f"{snapshot.completed} completed",
        f"{snapshot.in_flight} in flight",
        f"{window.deltas} deltas/s",
    ]
    if snapshot.not_completed:
        parts.insert(3, f"{snapshot.not_completed} not")
    for name, histogram in (("TTFT", window.ttft), ("gap", window.gap)):
        if histogram.count:
            parts.append(
                f"{name} {ms(histogram.percentile_ms(0.5))}, p99 {ms(histogram.percentile_ms(0.99))} ms"
            )
    return "  ".join(parts)
