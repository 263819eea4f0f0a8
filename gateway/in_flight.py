"""The responses that are not over and that this gateway follows: those it accepted, and those of other
gateways whose clients came here. Feeds them their logs, times them, and ends them when time is up.

Must not know how a response is accepted, nor what becomes of its text when it has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

from broker import metrics
from broker.connection import Broker
from broker.follow import LogFollower
from broker.jetstream import ApiError
from broker.labelled import labelled
from gateway import closer
from gateway.attendance import Attendance
from gateway.background import Background
from gateway.entry import Accepted, Entry
from gateway.live import Live
from gateway.tokenizer import ChatTokenizer
from gateway.watcher import Watcher
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ResponseId
from schemas.job import Job
from schemas.reply import Closed, Handoff, Joined, Parted, ReplyMessage, Started, Tokens

log = logging.getLogger(__name__)

CATCH_UP_LIMIT_S = 15.0
READERS = 8  # logs that are read at once
LOOKED_AT_S = 10.0  # another gateway's response that nobody follows is kept for so long


class InFlight:
    """``on_ended`` is called once for each entry that came to its end, in the event loop; ``on_held`` for a
    held job whose log has said whose tokens it has, or was found to say nothing: it settles a followed one;
    ``on_started`` whenever a worker begins.
    As many responses of other gateways are followed as this one accepts of its own
    (``gateway.max_responses``)."""

    def __init__(
        self,
        broker: Broker,
        gateway: GatewayId,
        limits: Gateway,
        background: Background,
        *,
        on_ended: Callable[[Entry], None],
        on_held: Callable[[Entry], None],
        on_started: Callable[[Entry, Started], None],
    ) -> None:
        self._broker = broker
        self._grace_s = limits.disconnect_grace_s
        self._max_followed = limits.max_responses
        self._background = background
        self._on_ended = on_ended
        self._on_held = on_held
        self._on_started = on_started
        self._entries: dict[ResponseId, Entry] = {}
        self._followers: asyncio.TaskGroup | None = None
        self._followed = 0
        self._reading = asyncio.Semaphore(READERS)
        self._watcher = Watcher(broker)
        self._attendance = Attendance(
            broker, gateway, grace_s=self._grace_s, attended=self._to_tell_of, on_heard=self._heard_of
        )

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, response: ResponseId) -> bool:
        return response in self._entries

    @property
    def accepted(self) -> int:
        """Those of this gateway."""
        return len(self._entries) - self._followed

    def find(self, response: ResponseId) -> Live | None:
        entry = self._entries.get(response)
        return entry.live if entry is not None and entry.settled.is_set() else None

    @property
    def kept_here(self) -> bool:
        """Whether anything would be missed if this gateway ended now: a client, or one that may come back
        here. What has gone on to another gateway would not."""
        return any(entry.live.has_client or not entry.live.elsewhere for entry in self._entries.values())

    async def run(self) -> None:
        """Never returns."""
        self._broker.on_reconnect(self._reconnected)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._followers = tasks
                tasks.create_task(self._watcher.run(), name="watcher")
                tasks.create_task(self._attendance.run(), name="attendance")
        finally:
            self._followers = None
            self._broker.off_reconnect(self._reconnected)
            for entry in self._entries.values():
                entry.stop_timers()

    # -- coming and going ---------------------------------------------------------------------------

    def register(self, live: Live, accepted: Accepted) -> Entry:
        """Before its job is published: the first token may be here before the ack."""
        assert live.response_id not in self._entries
        entry = self._entries[live.response_id] = Entry(live, accepted)
        return entry

    def withdraw(self, entry: Entry) -> None:
        """It was not accepted after all."""
        if self._entry_of(entry.live) is entry:
            self._remove(entry)

    def begin(self, entry: Entry) -> None:
        """The job is stored: it may be found, and its deadline counts."""
        live = entry.live
        entry.settled.set()
        if live.end is None:
            self._set_deadline(entry)
            if not live.attended:
                self.live_deserted(live)

    async def follow(self, job: Job, tokenizer: ChatTokenizer) -> Live:
        """A response that this gateway has not accepted, read up to now. Raises ``HeadraceError``:
        broker_unavailable; queue_full; response_not_found for one whose log is no longer kept."""
        entry = self._entries.get(job.response)
        if entry is None:
            entry = self._begin_following(Live(job, tokenizer.detokenizer_of(job.presentation.shape), self))
        try:
            async with asyncio.timeout(CATCH_UP_LIMIT_S):
                await entry.settled.wait()
        except TimeoutError:
            raise _unreadable() from None
        if entry.live.lost is not None:
            raise entry.live.lost
        return entry.live

    def _begin_following(self, live: Live) -> Entry:
        if self._followers is None:
            raise _unreadable()
        if self._followed >= self._max_followed:
            raise HeadraceError(
                "queue_full", "This gateway follows all the responses it can: try again later."
            )
        live.elsewhere = True
        entry = self._entries[live.response_id] = Entry(live)
        self._followed += 1
        entry.following = self._followers.create_task(self._follow(entry), name=f"follow {live.response_id}")
        self._set_grace(entry)  # so far nobody reads it, and nobody may come
        return entry

    async def _follow(self, entry: Entry) -> None:
        live = entry.live

        def feed(seq: int, message: ReplyMessage, stored_unix_ms: float) -> None:
            if self._entry_of(live) is entry:  # else it was removed with messages at hand
                self._feed(entry, seq, message, stored_unix_ms)

        job = live.job
        follower = LogFollower(
            self._broker, job.gateway, job.response, job.session, self._reading, on_message=feed
        )
        running = asyncio.create_task(follower.run(), name=f"log-of {live.response_id}")
        catching_up = asyncio.create_task(follower.caught_up.wait(), name=f"catch-up {live.response_id}")
        try:
            await asyncio.wait({running, catching_up}, return_when=asyncio.FIRST_COMPLETED)
            if follower.caught_up.is_set() and self._entry_of(live) is entry:
                self._caught_up(entry)
            await running
        except ApiError as error:  # of this log alone: the others go on
            log.error("%s cannot be followed: %s", live.response_id, error)
            if self._entry_of(live) is entry:
                self._remove(entry)
        finally:
            for task in (running, catching_up):
                task.cancel()
            await asyncio.gather(running, catching_up, return_exceptions=True)

    def _caught_up(self, entry: Entry) -> None:
        live = entry.live
        if live.log.last_seq == 0 and not closer.is_of_use(live.job):
            gone = HeadraceError("response_not_found", f"The response {live.response_id} is no longer kept.")
            self._remove(entry, gone)
            return
        entry.read = True
        self._set_deadline(entry)
        if live.job.held:
            self._on_held(entry)
        else:
            entry.settled.set()

    def _remove(self, entry: Entry, why: HeadraceError | None = None) -> None:
        """``why``: told to its readers, who may ask again, unless it has ended."""
        live = entry.live
        del self._entries[live.response_id]
        self._followed -= entry.accepted is None
        self._watcher.over(live.response_id)
        entry.stop_timers()
        if live.end is None:
            live.lose(why or _unreadable())
        entry.settled.set()
        if entry.following is not None:
            entry.following.cancel()
        if entry.feed is not None:
            entry.feed.close()

    def is_live(self, entry: Entry) -> bool:
        """It is followed here, and has not ended."""
        return self._entry_of(entry.live) is entry

    def _entry_of(self, live: Live) -> Entry | None:
        entry = self._entries.get(live.job.response)
        return entry if entry is not None and entry.live is live else None

    # -- what the logs bring ------------------------------------------------------------------------

    def feed(self, response: ResponseId, seq: int, message: ReplyMessage, stored_unix_ms: float) -> None:
        """A message of one of this gateway's own logs."""
        entry = self._entries.get(response)
        if entry is not None and entry.accepted is not None:
            self._feed(entry, seq, message, stored_unix_ms)

    def _feed(self, entry: Entry, seq: int, message: ReplyMessage, stored_unix_ms: float) -> None:
        live = entry.live
        live.feed(seq, message, stored_unix_ms)
        if live.end is not None:
            return
        if isinstance(message, Tokens):
            if entry.worker is not None:
                self._watcher.heard(entry.worker)
        elif isinstance(message, Started):
            entry.worker = message.worker
            self._on_started(entry, message)
            self._watcher.begun(live.response_id, message)
        elif isinstance(message, Handoff):
            entry.worker = None
            self._watcher.over(live.response_id)  # that worker gives the job back by itself
        elif isinstance(message, Joined | Parted) and (entry.accepted is not None or entry.read):
            self._on_held(entry)

    def live_started(self, live: Live) -> None:
        if (entry := self._entry_of(live)) is not None and entry.accepted is not None:
            entry.accepted.meter.started()
            entry.accepted.ticket.started(live)

    def live_tokens(self, live: Live, count: int) -> None:
        if (entry := self._entry_of(live)) is not None and entry.accepted is not None:
            entry.accepted.meter.tokens(count)

    def live_stopped(self, live: Live, total: int) -> None:
        closed = Closed(reason="stop", total=total)  # the text has ended; the log, and its worker, shall too
        if (entry := self._entry_of(live)) is not None:
            self._close_soon(entry, closed, needed=lambda: closer.is_of_use(live.job))

    def live_ended(self, live: Live) -> None:
        if (entry := self._entry_of(live)) is not None:
            self._remove(entry)
            self._on_ended(entry)

    # -- who reads them -----------------------------------------------------------------------------

    def live_attended(self, live: Live) -> None:
        entry = self._entry_of(live)
        if entry is None:
            return
        entry.had_client = True
        if entry.grace is not None:
            entry.grace.cancel()
            entry.grace = None
        self._tell_of(entry)

    def live_deserted(self, live: Live) -> None:
        """A dropped connection is not a cancel: the client may come back within the grace time."""
        if (entry := self._entry_of(live)) is not None:
            self._set_grace(entry)

    def live_left(self, live: Live) -> None:
        """Count what was generated for nobody. Of one with clients elsewhere, no gateway can tell."""
        if not live.elsewhere:
            unread = len(live.log.ids) - live.read_tokens
            labelled(metrics.TOKENS_UNREAD, live.model_name).inc(unread)

    def _to_tell_of(self) -> Iterator[ResponseId]:
        for response, entry in self._entries.items():
            if entry.live.elsewhere and entry.live.attended:
                yield response

    def _tell_of(self, entry: Entry) -> None:
        if entry.live.elsewhere:
            self._background.spawn(
                self._attendance.tell(entry.live.response_id), f"attend {entry.live.response_id}"
            )

    def _heard_of(self, response: ResponseId) -> None:
        """Another gateway has a client of it."""
        entry = self._entries.get(response)
        if entry is None:
            return
        first = not entry.live.elsewhere
        entry.live.elsewhere = True
        if not entry.live.attended:
            self._set_grace(entry)
        elif first:
            self._tell_of(entry)

    def _reconnected(self) -> None:
        """Nobody could be heard: whoever lost a client waits anew."""
        for entry in self._entries.values():
            if not entry.live.attended:
                self._set_grace(entry)

    # -- when time is up ----------------------------------------------------------------------------

    def _set_grace(self, entry: Entry) -> None:
        if entry.grace is not None:
            entry.grace.cancel()
        wait_s = self._grace_s if entry.accepted is not None or entry.had_client else LOOKED_AT_S
        entry.grace = asyncio.get_running_loop().call_later(wait_s, self._grace_passed, entry)

    def _set_deadline(self, entry: Entry) -> None:
        left_s = entry.live.job.deadline_unix_ms / 1000 - time.time()
        loop = asyncio.get_running_loop()
        entry.deadline = loop.call_later(max(0.0, left_s), self._deadline_passed, entry)

    def _grace_passed(self, entry: Entry) -> None:
        entry.grace = None
        live = entry.live
        if live.attended or not self._broker.connected:
            return  # without the broker, nobody could be heard: the reconnect sets the time anew
        if entry.accepted is None and not entry.had_client:
            self._remove(entry)  # it was only looked at
            return
        self._background.spawn(self._close_deserted(entry), f"desert {live.response_id}")

    async def _close_deserted(self, entry: Entry) -> None:
        live = entry.live

        def deserted() -> bool:  # who came back, or was heard of elsewhere, has stopped or set the time
            return live.end is None and not live.attended and entry.grace is None

        heard_all = await self._attendance.hears()
        if self.is_live(entry) and deserted():
            if heard_all:
                self._close_soon(entry, Closed(reason="cancelled"), needed=deserted)
            else:  # as good as without the broker
                self._set_grace(entry)

    def _deadline_passed(self, entry: Entry) -> None:
        closed = Closed(reason="deadline", code="deadline_exceeded")
        self._close_soon(entry, closed, needed=lambda: entry.live.end is None)

    def _close_soon(self, entry: Entry, closed: Closed, *, needed: Callable[[], bool]) -> None:
        """While ``needed``. A cancel adds nothing to a closing that is under way; the others do not wait for
        one that may be given up."""
        if entry.closing and closed.reason == "cancelled":
            return
        entry.closing = True

        async def close() -> None:
            try:
                await closer.close_surely(
                    self._broker, entry.live.job, closed, needed, ids_of=entry.live.lent_ids
                )
            finally:
                entry.closing = False

        self._background.spawn(close(), f"close {entry.live.response_id}")


def _unreadable() -> HeadraceError:
    return HeadraceError("broker_unavailable", "The response cannot be read right now; try again.")
