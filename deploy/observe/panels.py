"""What a dashboard is made of, and the queries that come again and again. Must not know Grafana's JSON, nor
which dashboards there are. Queues and streams are told alike by every process: max, never sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RATE = "[$__rate_interval]"
OF = 'model=~"$model"'


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """``tells``: what one sees in it. ``unit``: Grafana's name. ``red_from``: where the trouble begins."""

    title: str
    tells: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 12
    height: int = 8
    stacked: bool = False
    red_from: float | None = None


@dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]


def stat(title: str, tells: str, unit: str, expr: str, *, red_from: float | None = None) -> Panel:
    return Panel(title, tells, unit, (Query(expr),), kind="stat", width=4, height=4, red_from=red_from)


def quantiles(metric: str, by: str = "model", where: str = OF, more: str = "") -> tuple[Query, ...]:
    """p50, p95 and p99 of a histogram."""
    inner = f"sum by ({by}, le) (rate({metric}_bucket{{{where}}}{RATE}))"
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return tuple(
        Query(f"histogram_quantile({quantile}, {inner})", f"{legend} {name}{more}")
        for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def rates(metric: str, by: str, where: str = OF, legend: str = "") -> Query:
    shown = legend or " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return Query(f"sum by ({by}) (rate({metric}{{{where}}}{RATE}))", shown)


def peaks(metric: str, by: str, where: str = OF) -> Query:
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return Query(f"max by ({by}) ({metric}{{{where}}})", legend)


def rate(metric: str, by: str = "", where: str = OF) -> str:
    """A counter's sum, a second."""
    return f"sum{_by(by)}(rate({metric}{{{where}}}{RATE}))"


def increase(metric: str, where: str = OF) -> str:
    """A counter's sum, in the time shown."""
    return f"sum(increase({metric}{{{where}}}[$__range]))"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""
