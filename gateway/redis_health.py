"""Whether Redis answers: known to all who use it, so that a request meets one timeout at most. Must not know
what they keep there."""

from __future__ import annotations

import asyncio
import logging
import time

from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout

from broker import metrics
from gateway.breaker import Breaker

log = logging.getLogger(__name__)

AWAY_S = 1.0  # after an error Redis is left alone for so long, or each request would wait for its timeout
PING_S = 5.0  # so that a Redis that is away, or back, is seen without any request
PROBE_S = 5.0  # a request that asks it again has told within this time, or was cancelled


class RedisHealth:
    def __init__(self) -> None:
        self._breaker = Breaker(pause_s=AWAY_S, probe_s=PROBE_S)

    @property
    def is_away(self) -> bool:
        """It failed when it was asked last."""
        return self._breaker.is_open

    def may_ask(self) -> bool:
        """Whoever may tells with ``failed`` or ``answered`` what came of it."""
        return self._breaker.allows(time.monotonic())

    def failed(self, error: RedisError) -> None:
        metrics.REDIS_ERRORS.inc()
        if self._breaker.failed(time.monotonic()):
            log.warning(
                "Redis does not answer: no memory, no shared answers, limits count on this gateway alone: %s",
                error,
            )
        metrics.REDIS_DEGRADED.set(1)

    def answered(self) -> None:
        if self._breaker.answered():
            log.info("Redis answers again")
        metrics.REDIS_DEGRADED.set(0)

    async def watch(self, redis: Redis) -> None:
        """Never returns."""
        task = asyncio.current_task()
        assert task is not None
        # a command to Redis may swallow the cancellation: asyncio.wait_for does, before Python 3.12
        while not task.cancelling():
            await asyncio.sleep(PING_S)
            if not self.may_ask():
                continue
            begun_s = time.perf_counter()
            try:
                await redis.ping()
            except RedisError as error:
                if isinstance(error, RedisTimeout):
                    metrics.REDIS_ROUND_TRIP_S.observe(time.perf_counter() - begun_s)
                self.failed(error)
            else:
                metrics.REDIS_ROUND_TRIP_S.observe(time.perf_counter() - begun_s)
                self.answered()
