"""From counts to a step, and when the load generator was the bottleneck."""

from __future__ import annotations

import pytest

from deploy.bench.histogram import Quantiles
from deploy.bench.plan import ClosedLoop, OpenLoop
from deploy.bench.result import Responses
from deploy.bench.summary import complaints, step_of
from deploy.bench.tally import Totals, Window

LOAD = ClosedLoop(1)
FINE = Quantiles(count=10, p99=1)


def test_only_the_measured_time_counts() -> None:
    one = {
        number: Window(sent=2, ended={"completed": 1}, tokens=10, deltas=8, cpu_s=0.2)
        for number in range(-1, 4)
    }
    other = {0: Window(sent=1, ended={"broken": 1}, tokens=2, deltas=2, cpu_s=0.6)}
    totals = Totals(due=5, ended={"completed": 4, "broken": 1}, reasons={"a": 1, "b": 3}, connections=2)
    step = step_of(OpenLoop(3), [one, other], totals, span_s=2, busy=0.5)
    assert step.span_s == 2
    assert step.responses == Responses(due=5, completed=4, broken=1)
    assert list(step.reasons) == ["b", "a"]
    assert step.throughput.tokens_per_s == pytest.approx((10 + 10 + 2) / 2)
    assert step.throughput.completed_per_s == 1
    assert step.throughput.due_per_s == 2.5
    assert step.client.cpu == [0.2, 0.3]
    assert step.client.cpu_us_per_delta == pytest.approx(1e6 * 1.0 / 18)
    assert [point.at_s for point in step.series] == [-1, 0, 1, 2, 3]
    assert [point.in_flight for point in step.series] == [1, 2, 3, 4, 5]
    assert step.series[1].not_completed == 1


def test_a_time_that_is_no_whole_seconds_has_what_came_in_the_last_one() -> None:
    windows = {0: Window(tokens=5), 4: Window(tokens=4), 5: Window(tokens=9)}
    assert step_of(LOAD, [windows], Totals(), span_s=4.5, busy=0).throughput.tokens_per_s == 2


def test_nothing_measured_is_no_division_by_zero() -> None:
    step = step_of(LOAD, [{}], Totals(), span_s=1, busy=0)
    assert step.responses.due == 0
    assert step.series == []


@pytest.mark.parametrize(("told", "by"), [(4, "usage"), (0, "deltas"), (1, "both")])
def test_who_counted_the_tokens(told: int, by: str) -> None:
    totals = Totals(
        due=4, completed=4, told_usage=told, completed_tokens=12, completed_deltas=6, completed_arrivals=3
    )
    tokens = step_of(LOAD, [{}], totals, span_s=1, busy=0).tokens
    assert (tokens.counted_by, tokens.per_delta, tokens.per_arrival) == (by, 2, 4)


def test_a_load_generator_that_keeps_up_has_no_complaints() -> None:
    assert complaints([0.5, 0.84], FINE, FINE, busy=1.0, dropped=0) == []


def test_a_load_generator_that_does_not_says_so() -> None:
    (busy,) = complaints([0.2, 0.93], FINE, FINE, busy=0.6, dropped=0)
    assert busy.startswith("a load process used 93% of a core: the load generator was the bottleneck")
    (late,) = complaints([0.2], FINE, Quantiles(count=10, p99=31.2), busy=0.99, dropped=0)
    assert late.startswith(
        "the load generator was up to 31 ms late (p99), with 99% of the machine's cores busy"
    )
    (dropped,) = complaints([0.2], FINE, FINE, busy=0.5, dropped=7)
    assert dropped.startswith("7 requests were due and not sent")
