"""Which jobs are meant, and when."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.replay.pacing import Pace
from deploy.replay.wanted import Wanted, parse_when
from tests.unit.deploy.replay.samples import JOB

NOW = 1_800_000_000_000


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_is_so_long_ago(days: int, hours: int, minutes: int, seconds: int) -> None:
    ago_s = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_when(f"{days}d{hours}h{minutes}m{seconds}s", NOW) == NOW - ago_s * 1000


@pytest.mark.parametrize(
    ("text", "unix_ms"),
    [
        ("1.5h", NOW - 5_400_000),
        ("2026-07-31T14:00:00Z", 1_785_506_400_000),
        ("2026-07-31 14:00", 1_785_506_400_000),
        ("2026-07-31T16:00:00+02:00", 1_785_506_400_000),
        ("2026-07-31", 1_785_456_000_000),
    ],
)
def test_times_are_utc_unless_they_say_otherwise(text: str, unix_ms: int) -> None:
    assert parse_when(text, NOW) == unix_ms


@pytest.mark.parametrize("text", ["", "1", "h", "1h 30m", "-1h", "yesterday", "1w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a time"):
        parse_when(text, NOW)


def test_each_criterion_counts() -> None:
    assert Wanted().takes(JOB, NOW)
    mine = Wanted(since_unix_ms=NOW, until_unix_ms=NOW + 1, model="tiny", tenant="acme", priority="standard")
    assert mine.takes(JOB, NOW)
    for other in (
        Wanted(since_unix_ms=NOW + 1),
        Wanted(until_unix_ms=NOW),
        Wanted(model="tin"),
        Wanted(tenant="acm"),
        Wanted(priority="batch"),
    ):
        assert not other.takes(JOB, NOW)
    assert Wanted(model=JOB.model).takes(JOB, NOW)


TIMES = st.lists(st.integers(0, 10_000_000), max_size=50).map(sorted)


@given(TIMES, st.floats(0.1, 100))
def test_a_speed_keeps_the_gaps(times: list[int], speed: float) -> None:
    starts = Pace(speed=speed).starts(times)
    assert starts == sorted(starts)
    assert starts[:1] == [0.0][: len(times)]
    gaps = [after - before for before, after in pairwise(times)]
    assert [(after - before) * speed * 1000 for before, after in pairwise(starts)] == pytest.approx(gaps)


@given(TIMES, st.floats(0.1, 1000))
def test_a_rate_is_even_and_no_pace_is_at_once(times: list[int], rate: float) -> None:
    assert Pace(rate=rate).starts(times) == pytest.approx([n / rate for n in range(len(times))])
    assert Pace().starts(times) == [0.0] * len(times)
