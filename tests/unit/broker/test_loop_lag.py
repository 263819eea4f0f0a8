"""What the log is told of a loop that is late."""

from __future__ import annotations

from broker.loop_lag import TELL_EVERY_S, Lateness


def test_the_first_time_is_told_at_once_and_what_follows_together() -> None:
    lateness = Lateness(0.25, from_s=0.0)
    assert lateness.note(0.1, 1.0) is None
    assert lateness.note(0.3, 2.0) == (1, 0.3)
    assert lateness.note(0.9, 3.0) is None
    assert lateness.note(0.4, 4.0) is None
    assert lateness.note(0.0, 2.0 + TELL_EVERY_S) == (2, 0.9)
    assert lateness.note(0.0, 5.0 + 2 * TELL_EVERY_S) is None


def test_zero_is_never_told() -> None:
    assert Lateness(0.0, from_s=0.0).note(100.0, 1.0) is None


def test_a_start_is_not_told() -> None:
    lateness = Lateness(0.25, from_s=10.0)
    assert lateness.note(5.0, 9.0) is None
    assert lateness.note(0.0, 11.0) is None
    assert lateness.note(0.5, 12.0) == (1, 0.5)
