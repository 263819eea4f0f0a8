"""Our histogram says what prometheus-client's says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest

from broker.histogram import TokenHistogram

BOUNDS = (0.001, 0.01, 0.5)
seen = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 2), st.integers(1, 4)), max_size=20)


@given(seen)
def test_it_counts_the_same(observed: list[tuple[str, float, int]]) -> None:
    ours = TokenHistogram("took_seconds", "Time", BOUNDS)
    REGISTRY.unregister(ours)
    theirs_only, ours_only = CollectorRegistry(), CollectorRegistry()
    theirs = Histogram("took_seconds", "Time", ["model"], buckets=BOUNDS, registry=theirs_only)
    ours_only.register(ours)
    for model, value, times in observed:
        ours.labels(model=model).observe(value, times)
        for _ in range(times):
            theirs.labels(model=model).observe(value)
    assert _samples(ours_only) == _samples(theirs_only)


def _samples(registry: CollectorRegistry) -> dict[str, float]:
    lines = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: round(float(value), 9) for name, value in told.items()}
