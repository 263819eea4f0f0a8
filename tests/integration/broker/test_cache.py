"""The Redis client: it works, fails fast, and comes back by itself."""

from __future__ import annotations

import time

import pytest
import redis

from broker.cache import connect_redis
from schemas.config import Redis
from tests.integration.conftest import RedisServer


async def test_set_get_and_a_restart(redis_server: RedisServer) -> None:
    client = connect_redis(redis_server.config)
    try:
        await client.set("k", b"v")
        assert await client.get("k") == b"v"
        redis_server.kill()
        with pytest.raises(redis.RedisError):
            await client.get("k")
        redis_server.restart()
        assert await client.get("k") is None  # empty again, and answering
    finally:
        await client.aclose()


async def test_a_hanging_server_costs_little_time(redis_server: RedisServer) -> None:
    client = connect_redis(Redis(url=redis_server.url, timeout_s=0.2))
    try:
        await client.ping()
        redis_server.pause()
        began = time.monotonic()
        with pytest.raises(redis.RedisError):
            await client.get("k")
        assert time.monotonic() - began < 1.5
    finally:
        redis_server.resume()
        await client.aclose()
