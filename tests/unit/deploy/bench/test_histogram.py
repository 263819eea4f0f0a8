"""Histograms: close to the exact percentiles, and the sum of their parts."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench.histogram import Histogram, Quantiles

durations_us = st.lists(st.integers(0, 10**9), min_size=1, max_size=300)


def recorded(values_us: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values_us:
        histogram.record_s(value / 1e6)
    return histogram


@given(durations_us, st.floats(0.01, 1))
def test_a_percentile_is_within_its_bucket(values_us: list[int], share: float) -> None:
    exact = sorted(values_us)[max(1, math.ceil(share * len(values_us))) - 1]
    found = recorded(values_us).percentile_ms(share) * 1000
    assert found == pytest.approx(exact, rel=1 / 256, abs=0.5)


@given(durations_us, durations_us)
def test_histograms_add_up(some: list[int], others: list[int]) -> None:
    added = recorded(some)
    added.add(recorded(others))
    added.add(Histogram())
    assert added == recorded(some + others)


@given(durations_us)
def test_the_wire_keeps_it(values_us: list[int]) -> None:
    histogram = recorded(values_us)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(histogram), type=Histogram) == histogram


def test_ends_and_mean_are_exact() -> None:
    shown = recorded([1_001, 2_003, 900_007]).quantiles()
    assert (shown.count, shown.min, shown.max) == (3, 1.001, 900.007)
    assert shown.mean == pytest.approx(903.011 / 3)
    assert shown.p99 <= shown.max


def test_nothing_recorded_is_all_zero() -> None:
    assert Histogram().quantiles() == Quantiles()
    assert Histogram().percentile_ms(0.5) == 0


def test_a_clock_that_went_back_counts_as_zero() -> None:
    histogram = Histogram()
    histogram.record_s(-1e-6)
    assert histogram.quantiles() == Quantiles(count=1)
