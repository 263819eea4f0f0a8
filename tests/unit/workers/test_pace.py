"""When token messages wait, and when they never do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.pace import LAG_LIMIT_S, Pace

USUAL_S = 0.0004


def paced(*acks_s: float) -> Pace:
    """After acks that took so long, 10 ms apart, the last one at time 0."""
    pace = Pace()
    for number, waited_s in enumerate(acks_s, 1 - len(acks_s)):
        pace.acked(waited_s, number * 0.01)
    return pace


def test_a_lone_stream_never_waits() -> None:
    assert Pace().pause_s(0.00005, 0.0) == 0
    assert paced(USUAL_S, USUAL_S * 3, USUAL_S).pause_s(0.00005, 0.0) == 0


def test_a_busy_publisher_leaves_room_for_the_engine() -> None:
    assert Pace().pause_s(0.002, 0.0) == 0.004


def test_a_broker_that_lags_gets_fewer_messages_for_a_moment() -> None:
    pace = paced(USUAL_S, USUAL_S + 0.02)
    assert 0.019 < pace.pause_s(0.00005, 0.0) < 0.021
    assert 0.019 < pace.pause_s(0.00005, 0.03) < 0.021
    assert pace.pause_s(0.00005, 0.05) == 0, "nobody has said so since"


def test_an_ack_in_time_ends_the_lag() -> None:
    assert paced(USUAL_S, 0.02, USUAL_S).pause_s(0.00005, 0.0) == 0


def test_a_far_broker_is_not_a_slow_one() -> None:
    assert paced(0.150, 0.152, 0.151).pause_s(0.00005, 0.0) == 0


def test_a_way_that_became_longer_becomes_the_usual_one() -> None:
    assert paced(0.010, *[0.030] * 10).pause_s(0.00005, 0.0) > 0
    assert paced(0.010, *[0.030] * 200).pause_s(0.00005, 0.0) == 0


def test_after_a_reconnect_the_way_is_another() -> None:
    pace = paced(USUAL_S, 0.03)
    pace.reconnected()
    assert pace.pause_s(0.00005, 0.0) == 0
    pace.acked(0.03, 0.0)
    assert pace.pause_s(0.00005, 0.0) == 0


@given(st.lists(st.floats(0, 10), max_size=20), st.floats(0, 0.0004))
def test_the_broker_delays_a_token_by_its_limit_at_most(acks_s: list[float], took_s: float) -> None:
    assert paced(*acks_s).pause_s(took_s, 0.0) <= LAG_LIMIT_S
