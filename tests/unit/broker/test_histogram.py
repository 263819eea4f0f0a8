"""Many equal observations at once are many observations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from broker.histogram import StepHistogram, StepTally

BOUNDS = (0.001, 0.01, 0.1, 1.0)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.002, 0.1, 0.5, 3.0]), st.integers(1, 5))))
def test_counts_as_prometheus_does(observed: list[tuple[float, int]]) -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    ours = StepHistogram("waited", "seconds", ["model"], buckets=BOUNDS, registry=registries[0])
    theirs = Histogram("waited", "seconds", ["model"], buckets=BOUNDS, registry=registries[1])
    for amount, count in observed:
        ours.labels(model="m").observe_many(amount, count)
        for _ in range(count):
            theirs.labels(model="m").observe(amount)
    assert samples(registries[0]) == samples(registries[1])


def samples(registry: CollectorRegistry) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("waited"))
    return {name: round(float(value), 6) for name, value in pairs if "_created" not in name}


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.002, 0.1, 0.5, 3.0]), st.integers(1, 5))))
def test_a_tally_hands_over_what_it_counted_once(observed: list[tuple[float, int]]) -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    ours = StepHistogram("waited", "seconds", ["model"], buckets=BOUNDS, registry=registries[0])
    theirs = StepHistogram("waited", "seconds", ["model"], buckets=BOUNDS, registry=registries[1])
    tally = StepTally(ours.labels(model="m"))
    theirs.labels(model="m")
    for turn, (amount, count) in enumerate(observed):
        theirs.labels(model="m").observe_many(amount, count)
        tally.observe_many(amount, count)
        if turn % 3 == 0:
            tally.hand_over()
    tally.hand_over()
    tally.hand_over()
    assert samples(registries[0]) == samples(registries[1])
