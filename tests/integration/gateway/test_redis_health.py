"""What the watch over a real Redis shows of it."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from broker.cache import connect_redis
from gateway import redis_health
from gateway.redis_health import RedisHealth
from schemas.config import Redis
from tests.integration.conftest import RedisServer
from tests.integration.gateway.edge import until

TIMEOUT_S = 0.3


def shown(name: str) -> float:
    return REGISTRY.get_sample_value(f"headrace_redis_round_trip_seconds_{name}") or 0.0


async def test_a_ping_without_an_answer_counts_for_as_long_as_it_was_waited_for(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_health, "PING_S", 0.02)
    redis, health = connect_redis(Redis(url=redis_server.url, timeout_s=TIMEOUT_S)), RedisHealth()
    answered = shown("count")
    watching = asyncio.create_task(health.watch(redis), name="watch")
    try:
        await until(lambda: shown("count") > answered)
        redis_server.pause()
        spent_s = shown("sum")
        await until(lambda: health.is_away)
        assert shown("sum") - spent_s >= TIMEOUT_S
        redis_server.resume()
        await until(lambda: not health.is_away)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await redis.aclose()
