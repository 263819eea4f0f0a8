"""Steps as a server with so many slots would give them."""

from __future__ import annotations

from deploy.bench.histogram import Quantiles
from deploy.bench.plan import ClosedLoop, Load, OpenLoop, Plan, Target
from deploy.bench.result import Client, Point, Responses, Spread, Step, Throughput, TokenCounts

PLAN = Plan(target=Target(api="chat", urls=("http://h",), model="m"), load=ClosedLoop(1))
TOKEN_S = 0.01
LENGTH = 100


def spread(ms: float) -> Quantiles:
    return Quantiles(count=10, mean=ms, min=ms, p50=ms, p90=ms, p95=ms, p99=ms * 2, max=ms * 3)


def step(load: Load, tokens_per_s: float, e2e_ms: float, *, due: int = 100, completed: int = 100) -> Step:
    point = Point(
        at_s=0,
        sent=1,
        completed=1,
        not_completed=0,
        in_flight=0,
        tokens_per_s=5.0,
        ttft_ms=Spread(1, 2, 3),
        gap_ms=None,
        e2e_ms=Spread(1, 2, 3),
    )
    return Step(
        load=load,
        span_s=10.0,
        responses=Responses(due=due, completed=completed, refused=due - completed),
        reasons={"429 <queue_full>": due - completed} if due > completed else {},
        ttft_ms=spread(e2e_ms / 10),
        gap_ms=spread(10),
        stall_ms=spread(20),
        tpot_ms=spread(10),
        e2e_ms=spread(e2e_ms),
        tokens=TokenCounts(
            output=5, asked=5, prompt=9, cached=1, counted_by="usage", per_delta=1, per_arrival=1
        ),
        throughput=Throughput(due_per_s=10, completed_per_s=9, tokens_per_s=tokens_per_s),
        client=Client(
            cpu=[0.1],
            cpu_us_per_delta=10,
            lag_ms=spread(0.1),
            late_ms=spread(0.1),
            machine_busy=0.5,
            connections=3,
            complaints=[],
        ),
        series=[point],
    )


def served(load: Load, slots: int) -> Step:
    """By an engine with so many slots, which takes the same time for a token however many run."""
    service_s = LENGTH * TOKEN_S
    most = slots / service_s
    if isinstance(load, ClosedLoop):
        rate = min(load.concurrency / service_s, most)
        return step(load, rate * LENGTH, 1000 * load.concurrency / rate)
    if load.rate < most:
        return step(load, load.rate * LENGTH, 1000 * service_s / (1 - load.rate / most))
    return step(load, most * LENGTH, 60_000, completed=50)


__all__ = ["PLAN", "ClosedLoop", "OpenLoop", "served", "step"]
