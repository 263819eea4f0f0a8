"""From what the load processes counted to a ``Step``, and whether its figures can be trusted. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from deploy.bench.histogram import Histogram, Quantiles
from deploy.bench.plan import Load
from deploy.bench.result import Client, Point, Responses, Spread, Step, Throughput, TokenCounts
from deploy.bench.tally import Totals, Window

# Beyond these the load generator measures itself.
MAX_CPU = 0.85  # of a core, for one process
MAX_LATE_MS = 10.0  # p99 of how late its loop came to a timer, or a request was sent


def step_of(
    load: Load, processes: Sequence[Mapping[int, Window]], totals: Totals, *, span_s: float, busy: float
) -> Step:
    """``processes``: the windows of each. ``span_s``: what was measured, from second 0 on. ``busy``: the
    share of the machine's cores in that time."""
    within = range(ceil(span_s))
    all_windows = _merged(processes)
    measured = Window()
    for number in within:
        if number in all_windows:
            measured.add(all_windows[number])
    cpu = [sum(windows[n].cpu_s for n in within if n in windows) / span_s for windows in processes]
    lag, late = measured.lag.quantiles(), measured.late.quantiles()
    dropped = totals.ended.get("dropped", 0)
    return Step(
        load=load,
        span_s=span_s,
        responses=Responses(due=totals.due, **totals.ended),
        reasons=dict(sorted(totals.reasons.items(), key=lambda item: -item[1])),
        ttft_ms=totals.ttft.quantiles(),
        gap_ms=measured.gap.quantiles(),
        stall_ms=totals.stall.quantiles(),
        tpot_ms=totals.tpot.quantiles(),
        e2e_ms=totals.e2e.quantiles(),
        tokens=_token_counts(totals),
        throughput=Throughput(
            due_per_s=totals.due / span_s,
            completed_per_s=measured.ended.get("completed", 0) / span_s,
            tokens_per_s=measured.tokens / span_s,
        ),
        client=Client(
            cpu=[round(share, 3) for share in cpu],
            cpu_us_per_delta=1e6 * sum(cpu) * span_s / measured.deltas if measured.deltas else 0.0,
            lag_ms=lag,
            late_ms=late,
            machine_busy=round(busy, 3),
            connections=totals.connections,
            complaints=complaints(cpu, lag, late, busy=busy, dropped=dropped),
        ),
        series=_series(all_windows),
    )


def complaints(
    cpu: Sequence[float], lag: Quantiles, late: Quantiles, *, busy: float, dropped: int
) -> list[str]:
    """Why the figures are not the server's alone; nothing where they are."""
    found = []
    highest = max(cpu, default=0.0)
    if highest > MAX_CPU:
        found.append(
            f"a load process used {highest:.0%} of a core: the load generator was the bottleneck "
            "(give it more --processes, or cores of its own)"
        )
    worst = max(lag.p99, late.p99)
    if worst > MAX_LATE_MS:
        cause = "" if highest > MAX_CPU else f", with {busy:.0%} of the machine's cores busy"
        found.append(
            f"the load generator was up to {worst:.0f} ms late (p99){cause}: "
            "latencies hold as much of its own"
        )
    if dropped:
        found.append(f"{dropped} requests were due and not sent: too many were in flight already")
    return found


def _token_counts(totals: Totals) -> TokenCounts:
    by_usage = totals.told_usage
    return TokenCounts(
        output=totals.completed_tokens,
        asked=totals.completed_asked_tokens,
        prompt=totals.prompt_tokens,
        cached=totals.cached_tokens,
        counted_by="usage" if by_usage == totals.completed else "both" if by_usage else "deltas",
        per_delta=totals.completed_tokens / totals.completed_deltas if totals.completed_deltas else 0.0,
        per_arrival=totals.completed_tokens / totals.completed_arrivals if totals.completed_arrivals else 0.0,
    )


def _merged(processes: Sequence[Mapping[int, Window]]) -> dict[int, Window]:
    merged: dict[int, Window] = {}
    for windows in processes:
        for number, window in windows.items():
            merged.setdefault(number, Window()).add(window)
    return merged


def _series(windows: Mapping[int, Window]) -> list[Point]:
    points = []
    in_flight = 0
    for number in range(min(windows, default=0), max(windows, default=-1) + 1):
        window = windows.get(number) or Window()
        ended = sum(count for outcome, count in window.ended.items() if outcome != "dropped")
        in_flight += window.sent - ended
        completed = window.ended.get("completed", 0)
        points.append(
            Point(
                at_s=number,
                sent=window.sent,
                completed=completed,
                not_completed=sum(window.ended.values()) - completed,
                in_flight=in_flight,
                tokens_per_s=round(window.tokens, 1),
                ttft_ms=_spread(window.ttft),
                gap_ms=_spread(window.gap),
                e2e_ms=_spread(window.e2e),
            )
        )
    return points


def _spread(histogram: Histogram) -> Spread | None:
    if not histogram.count:
        return None
    return Spread(*(round(histogram.percentile_ms(share), 3) for share in (0.5, 0.95, 0.99)))
