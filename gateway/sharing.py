"""Whether a request needs a generation of its own: found in the cache, joined to an identical one in flight,
or made for the others, too. Decided once for all identical requests that are here at a time.

Must not know what becomes of a response that joined another; that is ``joining``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import msgspec
from redis.asyncio import Redis

from broker import metrics
from broker.labelled import labelled
from gateway.acceptance import Opening
from gateway.background import Background
from gateway.cache_key import CacheWish, may_share
from gateway.entry import Entry
from gateway.live import Live
from gateway.redis_health import RedisHealth
from gateway.response_cache import CLAIM_S, Answer, Claimed, Led, ResponseCache
from schemas.config import Cache
from schemas.job import CacheStatus, Job
from schemas.reply import Closed, FinishReason, Joined, Usage

FIRST_LOOK_S, LAST_LOOK_S = 0.005, 0.1  # between two looks for a leader's job, which takes a millisecond


@dataclass(frozen=True, slots=True)
class Plan:
    """``job``: as it is to be stored. ``opening`` None: a worker begins its log."""

    job: Job
    opening: Opening | None = None


Found = Answer | Claimed | Led


class Sharing:
    def __init__(
        self, redis: Redis, health: RedisHealth, config: Cache, secret: bytes, background: Background
    ) -> None:
        self.cache = ResponseCache(redis, health, config, secret)
        self._config = config
        self._background = background
        # by name of what identical requests share; the result None: whoever waits decides anew
        self._deciding: dict[str, asyncio.Future[Found | None]] = {}

    @asynccontextmanager
    async def plan(self, job: Job, wish: CacheWish) -> AsyncIterator[Plan]:
        """Store the job inside; where that raises, identical requests do not wait for it."""
        if not self._config.enabled or not may_share(job.sampling, wish):
            yield Plan(job)
            return
        name = self.cache.name_of(job)
        while self._config.join and (deciding := self._deciding.get(name)) is not None:
            found = await asyncio.shield(deciding)
            if found is not None:
                yield _planned(job, found)
                return
        decided = self._deciding[name] = asyncio.get_running_loop().create_future()
        found = None
        try:
            found = await self._look(job)
            if not isinstance(found, Claimed):
                decided.set_result(found)
            yield _planned(job, found)
            if isinstance(found, Claimed):
                decided.set_result(Led(job.response, confirmed=True))
                self._background.spawn(self.cache.confirm(job), f"lead {job.response}")
        finally:
            if self._deciding.get(name) is decided:
                del self._deciding[name]
            if not decided.done():
                decided.set_result(None)
                if isinstance(found, Claimed):
                    self._background.spawn(self.cache.release(job), f"release {job.response}")

    async def _look(self, job: Job) -> Found | None:
        """Again while somebody has claimed and the job is not stored; not for long, it takes a gateway's
        death in between, or a slow broker."""
        loop = asyncio.get_running_loop()
        give_up, pause_s = loop.time() + 2 * CLAIM_S, FIRST_LOOK_S
        while True:
            found = await self.cache.look(job)
            if not isinstance(found, Led) or found.confirmed:
                return found
            if loop.time() > give_up:
                return None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_LOOK_S)

    def ended(self, entry: Entry) -> None:
        """Keep what was generated for others to find, if it was followed here while it was."""
        live, end = entry.live, entry.live.end
        assert end is not None
        status = live.job.presentation.cache
        generated = status == "miss" or (status == "joined" and live.log.fence is not None)
        if not generated or not (entry.accepted is not None or entry.had_client):
            return
        finish = _finish(end.reason) if end.outcome in ("completed", "incomplete") else None
        if finish is None:
            work = self.cache.release(live.job)
        else:
            work = self.cache.store(live.job, Answer(tuple(live.ids), finish))
        self._background.spawn(work, f"share {live.response_id}")


def _finish(reason: str | None) -> FinishReason | None:
    match reason:
        case "stop" | "length" | "tool_calls" | "content_filter":
            return reason
    return None


def _planned(job: Job, found: Found | None) -> Plan:
    match found:
        case Answer():
            closed = Closed(
                reason="completed", ids=found.ids, finish=found.finish, usage=free_usage(job, len(found.ids))
            )
            return _counted(job, "hit", "hit", closed)
        case Led() if found.leader != job.response:  # a repeat, under its key, of the leader itself leads
            return _counted(job, "joined", "joined", Joined(leader=found.leader))
        case None:
            return _counted(job, "none", "unavailable", None)
    return _counted(job, "miss", "miss", None)


def _counted(job: Job, status: CacheStatus, result: str, opening: Opening | None) -> Plan:
    labelled(metrics.CACHE_LOOKUPS, job.model_name, result).inc()
    shown = msgspec.structs.replace(job.presentation, cache=status)
    return Plan(msgspec.structs.replace(job, presentation=shown, held=opening is not None), opening)


def free_usage(job: Job, total: int) -> Usage:
    """Of a completion that cost this response no prefill."""
    prompt = len(job.prompt_ids)
    return Usage(prompt_tokens=prompt, cached_tokens=prompt, completion_tokens=total)


def saved_by(live: Live) -> Literal["cache", "joined"] | None:
    """Where its tokens come from, if no worker has made any for it."""
    if live.log.fence is not None:
        return None
    match live.job.presentation.cache:
        case "hit":
            return "cache"
        case "joined":
            return "joined"
    return None
