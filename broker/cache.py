"""The connection to Redis. A cache: a slow answer is worth less than none, so every wait is short."""

from __future__ import annotations

from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as Client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from schemas.config import Redis

MAX_CONNECTIONS = 128
POOL_WAIT_S = 5.0  # for a free one: a burst of requests is no reason to go on without memory
HEALTH_CHECK_S = 15


def connect_redis(config: Redis) -> Client:
    """No connection is made yet. Commands answer bytes, and raise ``redis.RedisError`` within about twice
    ``timeout_s``: a pooled connection that a restart has cut is replaced once, then it is an error. So a
    command may run twice, the second time upon its own effect: callers must bear that."""
    pool = BlockingConnectionPool.from_url(
        config.url,
        timeout=POOL_WAIT_S,
        decode_responses=False,
        socket_timeout=config.timeout_s,
        socket_connect_timeout=config.timeout_s,
        socket_keepalive=True,
        health_check_interval=HEALTH_CHECK_S,
        max_connections=MAX_CONNECTIONS,
        retry=Retry(NoBackoff(), 1),
    )
    return Client.from_pool(pool)
