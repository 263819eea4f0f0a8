"""Lengths as they are written, and what is drawn from them."""

from __future__ import annotations

import random
from statistics import fmean, median

import pytest

from deploy.bench.distribution import Exponential, Fixed, Lognormal, Uniform, parse, whole


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("128", Fixed(128)),
        ("fixed:0.5", Fixed(0.5)),
        ("uniform:64-256", Uniform(64, 256)),
        ("lognormal:128,0.5", Lognormal(128, 0.5, 1280)),
        ("lognormal:128,0.5,400", Lognormal(128, 0.5, 400)),
        ("exponential:2", Exponential(2, 20)),
        ("exponential:2,3", Exponential(2, 3)),
    ],
)
def test_what_is_written(text: str, parsed: object) -> None:
    assert parse(text) == parsed


NO_LENGTHS = [
    "",
    "many",
    "-1",
    "nan",
    "inf",
    "uniform:5",
    "uniform:9-3",
    "uniform:a-b",
    "lognormal:0,1",
    "lognormal:1",
    "lognormal:1,2,3,4",
    "exponential:0",
    "normal:1,2",
]


@pytest.mark.parametrize("text", NO_LENGTHS)
def test_what_is_no_length_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="expected N, uniform:LOW-HIGH"):
        parse(text)


def test_draws_have_the_distribution_s_middle_and_bounds() -> None:
    rng = random.Random(1)
    uniform = [Uniform(10, 20).sample(rng) for _ in range(4000)]
    assert min(uniform) >= 10
    assert max(uniform) <= 20
    assert fmean(uniform) == pytest.approx(15, rel=0.02)
    lognormal = [Lognormal(100, 1, 500).sample(rng) for _ in range(4000)]
    assert median(lognormal) == pytest.approx(100, rel=0.1)
    assert max(lognormal) == 500
    exponential = [Exponential(3, 30).sample(rng) for _ in range(4000)]
    assert fmean(exponential) == pytest.approx(3, rel=0.1)


def test_a_length_is_one_at_least() -> None:
    assert whole(Fixed(0), random.Random(1)) == 1
    assert whole(Fixed(2.6), random.Random(1)) == 3
