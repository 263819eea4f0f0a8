"""A service that failed is asked again by one request alone."""

from __future__ import annotations

from gateway.breaker import Breaker


def test_one_at_a_time_finds_out() -> None:
    breaker = Breaker(pause_s=1, probe_s=5)
    assert [breaker.allows(0.0), breaker.allows(0.0)] == [True, True]
    assert [breaker.failed(10.0), breaker.failed(10.1)] == [True, False]
    assert not breaker.allows(11.0)
    assert [breaker.allows(11.2) for _ in range(5)] == [True] + [False] * 4  # one asks, the others go on
    breaker.failed(12.0)
    assert not breaker.allows(12.9)
    assert [breaker.allows(13.1) for _ in range(5)] == [True] + [False] * 4
    assert [breaker.answered(), breaker.answered()] == [True, False]
    assert [breaker.allows(13.2) for _ in range(5)] == [True] * 5


def test_one_that_never_tells_is_forgotten() -> None:
    breaker = Breaker(pause_s=1, probe_s=5)
    breaker.failed(0.0)
    assert breaker.allows(1.5)
    assert not breaker.allows(6.0)
    assert breaker.allows(6.6)
