"""What becomes of held jobs: following the leader's log, ending with it, or going on without it.

Whoever follows a response that joined another does all of this for it, at any gateway, in any number: each
step is a message on its log that is refused if another gateway was quicker (broker/REPLYLOG.md, rule 9).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from broker import metrics
from broker.connection import Broker
from broker.jetstream import ApiError
from broker.jobs import enqueue_held
from broker.replylog import ReplyLog
from gateway.background import Background
from gateway.entry import Entry
from gateway.feed import Feed
from gateway.generation import Ended
from gateway.live import Live
from gateway.response_cache import ResponseCache
from gateway.sharing import free_usage
from schemas.errors import HeadraceError
from schemas.ids import ResponseId, TenantId
from schemas.reply import Closed, FinishReason, Joined, Parted

log = logging.getLogger(__name__)

PAUSE_S = 0.2
_GONE = "The identical response that this one followed is no longer kept: ask again."


class Joining:
    """``attach``: a response of any gateway, as it is followed here. ``is_live``: the entry is, still."""

    def __init__(
        self,
        broker: Broker,
        cache: ResponseCache,
        background: Background,
        *,
        attach: Callable[[ResponseId, TenantId], Awaitable[Live]],
        is_live: Callable[[Entry], bool],
    ) -> None:
        self._broker = broker
        self._cache = cache
        self._background = background
        self._attach = attach
        self._is_live = is_live

    def held(self, entry: Entry) -> None:
        """What its log says by now, or that it says nothing: its gateway died before the first message."""
        log_read = entry.live.log
        if log_read.leader is None:
            _settled(entry)
        if log_read.fence is not None:
            return
        if log_read.parted:
            work = self._enqueue(entry)
        elif log_read.leader is not None:
            work = self._follow(entry, log_read.leader)
        else:
            work = self._say(entry, Parted(ids=()), behind=0)
        self._background.spawn(work, f"held {entry.live.response_id}")

    async def _enqueue(self, entry: Entry) -> None:
        while self._is_live(entry) and entry.live.log.fence is None:
            try:
                await self._broker.wait_connected()
                await enqueue_held(self._broker, entry.live.job)
            except (HeadraceError, ApiError) as error:
                log.warning("%s cannot be queued yet: %s", entry.live.response_id, error)
                await asyncio.sleep(PAUSE_S)
            else:
                return

    async def _follow(self, entry: Entry, leader: ResponseId) -> None:
        live = entry.live
        while self._is_live(entry) and live.log.leader == leader:
            try:
                found = await self._attach(leader, live.tenant)
            except HeadraceError as error:
                if error.code == "response_not_found":
                    gone = Closed(reason="refused", code="internal_error", message=_GONE, ids=())
                    await self._say(entry, gone, behind=live.log.shared_seq)
                    return
                log.debug("%s cannot be followed yet: %s", leader, error)
                await asyncio.sleep(PAUSE_S)
            else:
                self._feed(entry, found)
                return

    def _feed(self, entry: Entry, leader: Live) -> None:
        if not self._is_live(entry) or entry.live.log.leader != leader.response_id:
            return
        if entry.feed is not None:
            entry.feed.close()

        def over() -> None:
            self._background.spawn(self._without(entry, leader), f"after {leader.response_id}")

        entry.feed = Feed(leader, entry.live, on_over=over)
        entry.feed.open()
        _settled(entry)

    async def _without(self, entry: Entry, leader: Live) -> None:
        """The leader has ended; or this gateway has lost it, and finds it again."""
        behind = entry.live.log.shared_seq
        if leader.end is None:
            await asyncio.sleep(PAUSE_S)
            await self._follow(entry, leader.response_id)
            return
        await self._say(entry, await self._consequence(entry.live, leader, leader.end), behind=behind)

    async def _consequence(self, live: Live, leader: Live, end: Ended) -> Closed | Joined | Parted:
        job, ids = live.job, tuple(leader.ids)
        finish: FinishReason | None = None
        match end.outcome, end.reason:
            case (
                ("completed" | "incomplete"),
                ("stop" | "length" | "tool_calls" | "content_filter") as reason,
            ):
                finish = reason
        if finish is not None:
            usage = free_usage(job, len(ids))
            return Closed(reason="completed", ids=ids, finish=finish, usage=usage)
        if end.outcome == "failed" and end.code != "deadline_exceeded":
            # It is in the request: another try would fail as well, or end one more worker.
            await self._cache.release(job, leader.response_id)
            return Closed(reason="refused", code=end.code, message=end.message, ids=ids)
        metrics.CACHE_PARTINGS.inc()
        heir = await self._cache.inherit(job, leader.response_id)
        if heir is not None and heir != job.response:
            return Joined(leader=heir)
        return Parted(ids=max(ids, tuple(live.log.ids), key=len))

    async def _say(self, entry: Entry, message: Closed | Joined | Parted, *, behind: int) -> None:
        """Until it is stored, or the log says something else."""
        live, job = entry.live, entry.live.job
        reply_log = ReplyLog(self._broker, job.gateway, job.response, job.session)
        while self._is_live(entry) and live.log.shared_seq == behind:
            try:
                await self._broker.wait_connected()
                await reply_log.share(message, behind=behind)
            except (HeadraceError, ApiError) as error:
                log.warning("%s cannot go on yet: %s", job.response, error)
                await asyncio.sleep(PAUSE_S)
            else:
                return


def _settled(entry: Entry) -> None:
    """What there is of it is here. (Of one accepted here, that comes with the ack of its job.)"""
    if entry.accepted is None:
        entry.settled.set()
