"""Gauges go back to where they were, however a response comes to nothing."""

from __future__ import annotations

import pytest

from broker.metrics import GATEWAY
from gateway.generation import Ended
from gateway.meter import Meter
from schemas.reply import Timings


def gauges(model: str) -> tuple[float, float]:
    waiting, running = GATEWAY.waiting.labels(model=model), GATEWAY.running.labels(model=model)
    return waiting._value.get(), running._value.get()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("accepted", [False, True])
def test_waiting_and_running(started: bool, accepted: bool) -> None:
    model = f"model {started} {accepted}"
    meter = Meter(model, 1.0)
    assert gauges(model) == (1, 0)
    if started:
        meter.started()
        assert gauges(model) == (0, 1)
    if accepted:
        meter.ended(Ended("completed", 3))
    else:
        meter.withdrawn()  # its publish failed, and a worker may have had it by then
    assert gauges(model) == (0, 0)


@pytest.mark.parametrize(("timings", "count"), [(None, 0), (Timings(queue_ms=5), 1), (Timings(), 1)])
def test_queue_time_is_only_what_a_worker_told(timings: Timings | None, count: int) -> None:
    model = f"model {timings}"
    meter = Meter(model, 1.0)
    meter.ended(Ended("completed", 3, timings=timings))
    observed = GATEWAY.queue_wait_s.labels(model=model)
    assert sum(bucket.get() for bucket in observed._buckets) == count
