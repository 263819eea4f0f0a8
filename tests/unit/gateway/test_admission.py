"""What admission says: tiers, refusals, headers, and events of the queue."""

from __future__ import annotations

import math

import pytest

from gateway.admission import duration, limit_headers
from gateway.rate import LocalRates, Room, Ruling, lane_of
from gateway.service_tier import priority_of, tier_of
from schemas.errors import HeadraceError
from schemas.ids import TenantId
from schemas.job import PRIORITIES
from schemas.quota import AS_CONFIGURED, OwnQuota, Quota

ACME = TenantId("acme")


def ask(rates: LocalRates, quota: Quota, now_ms: float, *, tokens: int = 1) -> Ruling:
    return rates.ask(ACME, quota, tokens=tokens, in_flight=0, lane="fair", now_ms=now_ms)


def test_tiers_are_the_classes() -> None:
    assert [priority_of(tier, "batch") for tier in ("priority", "default", "flex", "auto", None)] == [
        *PRIORITIES,
        "batch",
        "batch",
    ]
    assert all(priority_of(tier_of(priority), "batch") == priority for priority in PRIORITIES)
    for tier, code in (("scale", "unsupported_parameter"), ("gold", "invalid_value")):
        with pytest.raises(HeadraceError) as refused:
            priority_of(tier, "interactive")
        assert (refused.value.code, refused.value.param) == (code, "service_tier")


def test_a_limit_of_the_key_goes_before_the_configuration() -> None:
    configured = Quota(requests_per_minute=1, tokens_per_minute=9, concurrent_responses=3)
    own = OwnQuota(requests_per_minute=5, concurrent_responses=0)
    assert own.over(configured) == Quota(requests_per_minute=5, tokens_per_minute=9, concurrent_responses=0)
    assert AS_CONFIGURED.over(configured) == configured


@pytest.mark.parametrize(
    ("ms", "shown"), [(0, "0ms"), (16.2, "17ms"), (1200, "1.2s"), (60_000, "1m0s"), (61_500, "1m1.5s")]
)
def test_times_are_written_as_openai_writes_them(ms: float, shown: str) -> None:
    assert duration(ms) == shown


def test_headers_tell_of_the_limits_that_there_are() -> None:
    assert limit_headers(None) == limit_headers(Ruling()) == {}
    assert limit_headers(Ruling(requests=Room(10, 9, 6000.0))) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6s",
    }


def test_a_minute_is_there_at_once_and_comes_back_evenly() -> None:
    rates, quota = LocalRates(), Quota(requests_per_minute=60)
    assert [ask(rates, quota, 0.0).refused for _ in range(61)] == [None] * 60 + ["requests"]
    assert ask(rates, quota, 0.0).wait_ms == pytest.approx(1000)
    assert ask(rates, quota, 1000.0).refused is None
    assert ask(rates, quota, 1000.0).refused == "requests"


def test_tokens_that_were_not_used_are_given_back() -> None:
    rates, quota = LocalRates(), Quota(tokens_per_minute=100)
    assert ask(rates, quota, 0.0, tokens=100).refused is None
    assert ask(rates, quota, 0.0, tokens=1).refused == "tokens"
    rates.correct(ACME, quota, tokens=-60, requests=0)
    assert ask(rates, quota, 0.0, tokens=60).refused is None
    assert ask(rates, quota, 0.0, tokens=101).wait_ms == math.inf


def test_the_share_is_of_the_tenants_that_are_there() -> None:
    assert lane_of(7, slots=8, active_tenants=1, min_share=2) == "fair"
    assert lane_of(8, slots=8, active_tenants=1, min_share=2) == "over"
    assert lane_of(4, slots=8, active_tenants=2, min_share=2) == "over"
    assert lane_of(1, slots=8, active_tenants=100, min_share=2) == "fair"
