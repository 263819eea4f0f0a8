"""A report as one HTML page: no script, nothing that is fetched from elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import msgspec

from deploy.bench import charts
from deploy.bench.charts import Chart, Dot, Line
from deploy.bench.histogram import Quantiles
from deploy.bench.result import Point, Report, Spread, Step
from deploy.bench.table import ms, remarks

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_SHARES = (("p50", "a"), ("p95", "b"), ("p99", "c"))
_FIGURES = (
    ("Time to first token", "ttft_ms"),
    ("Gap between arrivals of text", "gap_ms"),
    ("End to end", "e2e_ms"),
)


class Read(NamedTuple):
    """What a line shows of each point; None: nothing."""

    name: str
    kind: str
    of: Callable[[Point], float | None]


def as_html(report: Report) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["ms"] = ms
    template = environment.from_string(_TEMPLATE.read_text())
    return template.render(
        report=report,
        command=shlex.join(report.command),
        remarks=list(remarks(report)),
        ramp=[charts.svg(chart) for chart in ramp_charts(report)] if len(report.steps) > 1 else [],
        over_time=[[charts.svg(chart) for chart in time_charts(step)] for step in report.steps],
        plan=msgspec.json.format(msgspec.json.encode(report.plan), indent=2).decode(),
    )


def ramp_charts(report: Report) -> list[Chart]:
    """Throughput against latency; the loads are joined as they rise."""
    knee = report.knee.step if report.knee else None
    found = []
    for title, field in _FIGURES:
        lines = []
        for share, kind in (("p50", "a"), ("p99", "c")):
            dots = [
                _dot_of(step, field, share, knee=index == knee, labelled=share == "p50")
                for index, step in enumerate(report.steps)
            ]
            lines.append(Line(share, kind, dots))
        found.append(Chart(f"{title} against throughput", "tokens a second", "ms", lines, marked=True))
    return found


def _dot_of(step: Step, field: str, share: str, *, knee: bool, labelled: bool) -> Dot | None:
    spread: Quantiles = getattr(step, field)
    if not spread.count:
        return None
    value, rate = getattr(spread, share), step.throughput.tokens_per_s
    told = f"{step.load}: {rate:.0f} tokens a second, {share} {ms(value)} ms{', the knee' if knee else ''}"
    return Dot(rate, value, told, label=f"{step.load.value:g}" if labelled else "", ring=knee and labelled)


def time_charts(step: Step) -> list[Chart]:
    spreads = [
        (title, [Read(share, kind, _reader(field, share)) for share, kind in _SHARES])
        for title, field in _FIGURES
    ]
    rate = Read("tokens a second", "a", lambda point: point.tokens_per_s)
    in_flight = Read("in flight", "a", lambda point: point.in_flight)
    lacking = Read("not completed", "c", lambda point: point.not_completed)
    return [
        *(_over_time(title, "ms", reads, step.series) for title, reads in spreads),
        _over_time("Throughput", "tokens a second", [rate], step.series),
        _over_time("Responses", "responses", [in_flight, lacking], step.series),
    ]


def _reader(field: str, share: str) -> Callable[[Point], float | None]:
    def read(point: Point) -> float | None:
        spread: Spread | None = getattr(point, field)
        return None if spread is None else getattr(spread, share)

    return read


def _over_time(title: str, unit: str, reads: Sequence[Read], series: Sequence[Point]) -> Chart:
    lines = [Line(read.name, read.kind, [_at(point, read) for point in series]) for read in reads]
    return Chart(f"{title} over time", "seconds", unit, lines, mark_x=0)


def _at(point: Point, read: Read) -> Dot | None:
    value = read.of(point)
    return None if value is None else Dot(point.at_s, value, f"{point.at_s} s: {read.name} {ms(value)}")
