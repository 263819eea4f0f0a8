"""The waits between restarts."""

from __future__ import annotations

from broker.backoff import Backoff


def test_waits_double_to_a_limit() -> None:
    backoff = Backoff()
    assert [backoff.crashed(0) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_health_starts_it_over() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.crashed(29.9)
    assert backoff.crashed(30.0) == 0.2
    assert backoff.crashed(0) == 0.4


def test_years_of_crashes_are_still_a_wait() -> None:
    backoff = Backoff(crashes=10**9)
    assert backoff.crashed(0) == 10.0
