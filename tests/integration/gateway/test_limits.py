"""Tenants' limits on a real Redis: two gateways count as one, and as one alone does without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count

import pytest
from redis.asyncio import Redis as Client

from broker.cache import connect_redis
from gateway.limits import Claim, TenantLimits
from gateway.rate import Ruling
from gateway.redis_health import RedisHealth
from schemas.config import Limits
from schemas.config import Redis as RedisConfig
from schemas.ids import ModelToken, ResponseId, TenantId
from schemas.quota import Quota
from tests.chaos.proxy import Proxy
from tests.integration.conftest import RedisServer
from tests.integration.gateway.edge import until

SLOTS = 8
_numbers = count()


def claim(tenant: str = "acme", *, tokens: int = 10, model: str = "m", **quota: int) -> Claim:
    return Claim(
        response=ResponseId(f"resp_{next(_numbers)}"),
        tenant=TenantId(tenant),
        model=ModelToken(model),
        quota=Quota(**quota),
        tokens=tokens,
        slots=SLOTS,
    )


@contextlib.asynccontextmanager
async def counting(server: RedisServer, url: str = "", **config: object) -> AsyncIterator[TenantLimits]:
    redis = connect_redis(RedisConfig(url=url or server.url, timeout_s=0.3))
    limits = TenantLimits(redis, RedisHealth(), Limits(**config))  # type: ignore[arg-type]
    running = asyncio.create_task(limits.run())
    try:
        yield limits
        assert not running.done(), running
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await redis.aclose()


@pytest.fixture
async def two(redis_server: RedisServer) -> AsyncIterator[tuple[TenantLimits, TenantLimits]]:
    async with counting(redis_server) as one, counting(redis_server) as other:
        yield one, other


async def keys(server: RedisServer) -> set[bytes]:
    client = Client.from_url(server.url)
    try:
        return set(await client.keys("*"))
    finally:
        await client.aclose()


Two = tuple[TenantLimits, TenantLimits]


async def test_at_most_so_many_at_once_whichever_gateway(two: Two) -> None:
    asked = [two[n % 2].take(claim(concurrent_responses=5)) for n in range(40)]
    rulings = await asyncio.gather(*asked)
    assert [ruling.refused for ruling in rulings].count(None) == 5
    assert {ruling.refused for ruling in rulings} == {None, "concurrent"}


async def test_a_place_is_free_again_when_its_response_ends(two: Two) -> None:
    here, there = two
    held = claim(concurrent_responses=1)
    assert (await here.take(held)).refused is None
    assert (await there.take(claim(concurrent_responses=1))).refused == "concurrent"
    here.give_back(held)
    here.give_back(held)  # once is enough
    await eventually_taken(there, concurrent_responses=1)


async def eventually_taken(limits: TenantLimits, **quota: int) -> Ruling:
    async with asyncio.timeout(20):
        while (ruling := await limits.take(claim(**quota))).refused is not None:
            await asyncio.sleep(0.02)
    return ruling


async def test_a_repeated_request_costs_nothing_and_takes_nothing_away(two: Two) -> None:
    here, there = two
    first = claim(requests_per_minute=2, concurrent_responses=1)
    again = replace(first)
    assert not (await here.take(first)).repeats
    for gateway in two:
        ruling = await gateway.take(again)
        assert (ruling.refused, ruling.repeats) == (None, True)
        gateway.give_back(again, requests=-1)
    assert (await there.take(claim(concurrent_responses=1))).refused == "concurrent"
    here.give_back(first)
    ruling = await eventually_taken(there, requests_per_minute=2, concurrent_responses=1)
    assert ruling.requests is not None
    assert ruling.requests.remaining == 0


async def test_requests_per_minute_over_both(two: Two) -> None:
    rulings = [await two[n % 2].take(claim(requests_per_minute=6)) for n in range(7)]
    assert [ruling.refused for ruling in rulings] == [None] * 6 + ["requests"]
    assert [ruling.requests.remaining for ruling in rulings if ruling.requests] == [5, 4, 3, 2, 1, 0, 0]
    assert 5_000 < rulings[-1].wait_ms <= 10_000  # one comes back every 10 s
    assert (await two[0].take(claim("another", requests_per_minute=6))).refused is None


async def test_tokens_are_charged_at_first_and_corrected_at_the_end(two: Two) -> None:
    here, there = two
    first = claim(tokens=900, tokens_per_minute=1000)
    assert (await here.take(first)).refused is None
    refused = await there.take(claim(tokens=200, tokens_per_minute=1000))
    assert refused.refused == "tokens"
    assert refused.tokens is not None
    assert 100 <= refused.tokens.remaining < 110
    assert 5_000 < refused.wait_ms <= 6_000
    here.give_back(first, tokens=50 - 900)  # it used 50
    async with asyncio.timeout(20):
        while (ruling := await there.take(claim(tokens=200, tokens_per_minute=1000))).refused is not None:
            await asyncio.sleep(0.02)
    assert ruling.tokens is not None
    assert 750 <= ruling.tokens.remaining < 760


async def test_more_than_a_minute_holds_is_never_allowed_and_charges_nothing(two: Two) -> None:
    refused = await two[0].take(claim(tokens=101, tokens_per_minute=100, requests_per_minute=1))
    assert (refused.refused, refused.wait_ms) == ("tokens", float("inf"))
    assert (
        await two[1].take(claim(tokens=100, tokens_per_minute=100, requests_per_minute=1))
    ).refused is None


async def test_what_a_dead_gateway_held_comes_back(redis_server: RedisServer) -> None:
    cable = Proxy(redis_server.port)
    await cable.start()
    url = f"redis://127.0.0.1:{cable.port}/0"
    async with counting(redis_server, lease_s=1) as alive, counting(redis_server, url, lease_s=1) as dead:
        assert (await dead.take(claim(concurrent_responses=2))).refused is None
        cable.cut()  # as good as dead: it renews and gives back nothing
        kept = claim(concurrent_responses=2)
        assert (await alive.take(kept)).refused is None
        assert (await alive.take(claim(concurrent_responses=2))).refused == "concurrent"
        await eventually_taken(alive, concurrent_responses=2)
        # its own lease is older, and renewed
        assert (await alive.take(claim(concurrent_responses=2))).refused == "concurrent"
    await cable.close()


async def test_what_is_asked_at_once_is_ruled_in_its_order(two: tuple[TenantLimits, TenantLimits]) -> None:
    asked = [claim(tenant, requests_per_minute=3) for tenant in ("acme", "acme", "umbrella", "acme", "acme")]
    ruled = await asyncio.gather(*(two[0].take(one) for one in asked))
    assert [ruling.refused for ruling in ruled] == [None, None, None, None, "requests"]
    assert [ruling.requests.remaining for ruling in ruled if ruling.requests] == [2, 1, 2, 0, 0]


async def test_who_leaves_gives_back_all(redis_server: RedisServer) -> None:
    async with counting(redis_server) as leaving:
        for _ in range(3):
            await leaving.take(claim(concurrent_responses=3))
        assert await keys(redis_server)
    assert not await keys(redis_server)


async def test_the_share_shrinks_as_tenants_come(two: Two) -> None:
    async def lanes(tenant: str, times: int) -> list[str]:
        return [(await two[n % 2].take(claim(tenant))).lane for n in range(times)]

    assert await lanes("a", SLOTS + 2) == ["fair"] * SLOTS + ["over"] * 2
    assert await lanes("b", 5) == ["fair"] * 4 + ["over"]
    assert await lanes("c", 3) == ["fair"] * 2 + ["over"]  # 8 // 3 = 2
    for tenant in "defgh":
        assert await lanes(tenant, 3) == ["fair"] * 2 + ["over"]  # the least share
    assert (await two[0].take(claim("a", model="another"))).lane == "fair"


async def test_without_redis_one_gateway_counts_by_the_same_rules(redis_server: RedisServer) -> None:
    """The same questions to the script and to what stands in for it get the same answers."""
    questions = [
        *([("a", 10, {"requests_per_minute": 4, "tokens_per_minute": 100})] * 6),
        *([("b", 60, {"tokens_per_minute": 100})] * 2),
        ("b", 101, {"tokens_per_minute": 100, "requests_per_minute": 1}),
        *([("c", 1, {"concurrent_responses": 2, "requests_per_minute": 2})] * 4),
        *([("d", 50, {"requests_per_minute": 1, "tokens_per_minute": 60})] * 2),
        *([("e", 1, {})] * 12),
    ]
    claims = [claim(tenant, tokens=tokens, **quota) for tenant, tokens, quota in questions]
    async with counting(redis_server) as shared, counting(redis_server) as alone:
        with_redis = [shape(await shared.take(each)) for each in claims]
        redis_server.kill()
        without = [shape(await alone.take(each)) for each in claims]
        assert without == with_redis
        assert alone.health.is_away
        assert {"requests", "tokens", "concurrent", None} == {said[1] for said in without}


def shape(ruling: Ruling) -> tuple[object, ...]:
    """What does not depend on the instant."""
    rooms = [room and (room.limit, room.remaining) for room in (ruling.requests, ruling.tokens)]
    lane = ruling.lane if ruling.refused is None else None
    return (
        lane,
        ruling.refused,
        round(ruling.wait_ms / 10_000, 0) if ruling.wait_ms < 1e9 else "never",
        *rooms,
    )


async def test_leases_outlive_a_restart_of_redis(redis_server: RedisServer) -> None:
    async with counting(redis_server, lease_s=1) as one, counting(redis_server, lease_s=1) as other:
        assert (await one.take(claim(concurrent_responses=1))).refused is None
        redis_server.restart()  # it has forgotten all
        await until(lambda: not one.health.is_away)
        async with asyncio.timeout(20):
            while not await keys(redis_server):
                await asyncio.sleep(0.02)
        async with asyncio.timeout(20):
            while (await other.take(held := claim(concurrent_responses=1))).refused != "concurrent":
                other.give_back(held)
                await asyncio.sleep(0.1)
