"""Whether Redis answers: known to all who use it, so that a request meets one timeout at most. Must not know
what they keep there."""

from __future__ import annotations

import logging
import time

from redis.exceptions import RedisError

from broker import metrics
from gateway.breaker import Breaker

log = logging.getLogger(__name__)

AWAY_S = 1.0  # after an error Redis is left alone for so long, or each request would wait for its timeout
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
