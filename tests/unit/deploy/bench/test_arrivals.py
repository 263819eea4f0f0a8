"""When conversations begin."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest

from deploy.bench.arrivals import arrivals
from deploy.bench.plan import OpenLoop


def test_a_constant_rate_drifts_nowhere() -> None:
    found = list(islice(arrivals(OpenLoop(3, "constant"), 1), 301))
    assert [number for number, _ in found] == list(range(301))
    assert found[300][1] == pytest.approx(100)


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    times = [at_s for _, at_s in islice(arrivals(OpenLoop(10, "poisson"), 1), 20_000)]
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.1, rel=0.03)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_a_seed_says_when() -> None:
    def first(seed: int) -> list[tuple[int, float]]:
        return list(islice(arrivals(OpenLoop(5), seed), 50))

    assert first(7) == first(7)
    assert first(7) != first(8)
