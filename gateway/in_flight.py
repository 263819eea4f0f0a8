"""The responses that are not over and that this gateway follows: those it accepted, and those of other
gateways whose clients came here. Feeds them their logs, times them, and ends them when time is up.

Must not know how a response is accepted, nor what becomes of its text when it has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from broker import metrics
from broker.connection import Broker
from broker.follow import LogFollower
from gateway import closer
from gateway.attendance import Attendance
from gateway.background import Background
from gateway.conversation import Opened
from gateway.live import Live
from gateway.meter import Meter
from gateway.tokenizer import ChatTokenizer
from gateway.watcher import Watcher
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ResponseId, WorkerId
from schemas.job import Job
from schemas.reply import Closed, Handoff, ReplyMessage, Started, Tokens

CATCH_UP_LIMIT_S = 5.0


@dataclass(slots=True, eq=False)
class Accepted:
    """What this gateway keeps of a response that it accepted itself."""

    opened: Opened
    tokenizer: ChatTokenizer
    meter: Meter


@dataclass(slots=True, eq=False)
class Entry:
    """``accepted`` None: another gateway's response, which ``following`` brings. ``attended``: it has, or
    had, a client here."""

    live: Live
    accepted: Accepted | None = None
    worker: WorkerId | None = None  # who writes it now
    attended: bool = False
    closing: bool = False
    deadline: asyncio.TimerHandle | None = None
    grace: asyncio.TimerHandle | None = None
    following: asyncio.Task[None] | None = None
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)


class InFlight:
    """``on_ended`` is called once for each entry that came to its end, in the event loop."""

    def __init__(
        self,
        broker: Broker,
        gateway: GatewayId,
        limits: Gateway,
        background: Background,
        *,
        on_ended: Callable[[Entry], None],
    ) -> None:
        self._broker = broker
        self._grace_s = limits.disconnect_grace_s
        self._background = background
        self._on_ended = on_ended
        self._entries: dict[ResponseId, Entry] = {}
        self._watcher = Watcher(broker)
        self._attendance = Attendance(
            broker, gateway, grace_s=self._grace_s, attended=self._to_tell_of, on_heard=self._heard_of
        )

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, response: ResponseId) -> bool:
        return response in self._entries

    def find(self, response: ResponseId) -> Live | None:
        entry = self._entries.get(response)
        return entry.live if entry is not None and entry.caught_up.is_set() else None

    @property
    def kept_here(self) -> bool:
        """Whether anything would be missed if this gateway ended now: a client, or one that may come back
        here. What has gone on to another gateway would not."""
        return any(entry.live.attended or not entry.live.elsewhere for entry in self._entries.values())

    async def run(self) -> None:
        """Never returns."""
        self._broker.on_reconnect(self._reconnected)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watcher.run(), name="watcher")
                tasks.create_task(self._attendance.run(), name="attendance")
        finally:
            self._broker.off_reconnect(self._reconnected)
            for entry in self._entries.values():
                _stop_timers(entry)

    # -- coming and going ---------------------------------------------------------------------------

    def register(self, live: Live, accepted: Accepted) -> Entry:
        """Before its job is published: the first token may be here before the ack."""
        entry = self._entries[live.response_id] = Entry(live, accepted)
        entry.caught_up.set()
        return entry

    def withdraw(self, entry: Entry) -> None:
        """It was not accepted after all."""
        if self._entries.get(entry.live.response_id) is entry:
            self._remove(entry)

    def begin(self, entry: Entry) -> None:
        """The job is stored: its times begin to count."""
        live = entry.live
        live.accepted(time.time() * 1000)
        if live.end is None:
            self._set_deadline(entry)
            if not live.attended:
                self.live_deserted(live)

    async def follow(self, job: Job, tokenizer: ChatTokenizer) -> Live:
        """Another gateway's response, read up to now. Raises ``HeadraceError(broker_unavailable)``."""
        entry = self._entries.get(job.response)
        if entry is None:
            entry = self._entries[job.response] = Entry(Live(job, tokenizer.detokenizer, self))
            entry.live.elsewhere = True
            self._begin_following(entry)
        try:
            async with asyncio.timeout(CATCH_UP_LIMIT_S):
                await entry.caught_up.wait()
        except TimeoutError:
            raise HeadraceError(
                "broker_unavailable", "The response cannot be read right now; try again."
            ) from None
        return entry.live

    def _begin_following(self, entry: Entry) -> None:
        live = entry.live

        def feed(seq: int, message: ReplyMessage, at_unix_ms: float) -> None:
            if self._entries.get(live.response_id) is entry:  # else it was removed with messages at hand
                self._feed(entry, seq, message, at_unix_ms)

        follower = LogFollower(self._broker, live.response_id, on_message=feed)

        async def follow() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(follower.run(), name=f"log-of {live.response_id}")
                await follower.caught_up.wait()
                entry.caught_up.set()
                if live.end is None:
                    self._set_deadline(entry)

        entry.following = self._background.spawn(follow(), f"follow {live.response_id}")
        self.live_deserted(live)  # so far nobody reads it, and nobody may come

    def _remove(self, entry: Entry) -> None:
        response = entry.live.response_id
        del self._entries[response]
        self._watcher.over(response)
        _stop_timers(entry)
        entry.caught_up.set()
        if entry.following is not None:
            entry.following.cancel()

    # -- what the logs bring ------------------------------------------------------------------------

    def feed(self, response: ResponseId, seq: int, message: ReplyMessage) -> None:
        """A message of one of this gateway's own logs."""
        entry = self._entries.get(response)
        if entry is not None and entry.accepted is not None:
            self._feed(entry, seq, message, None)

    def _feed(self, entry: Entry, seq: int, message: ReplyMessage, at_unix_ms: float | None) -> None:
        live = entry.live
        live.feed(seq, message, at_unix_ms)
        if live.end is not None:
            return
        if isinstance(message, Tokens):
            if entry.worker is not None:
                self._watcher.heard(entry.worker)
        elif isinstance(message, Started):
            entry.worker = message.worker
            self._watcher.begun(live.response_id, message)
        elif isinstance(message, Handoff):
            entry.worker = None
            self._watcher.over(live.response_id)  # that worker gives the job back by itself

    def live_started(self, live: Live) -> None:
        if (accepted := self._entries[live.response_id].accepted) is not None:
            accepted.meter.started()

    def live_tokens(self, live: Live, count: int) -> None:
        if (accepted := self._entries[live.response_id].accepted) is not None:
            accepted.meter.tokens(count)

    def live_stopped(self, live: Live, total: int) -> None:
        closed = Closed(reason="stop", total=total)  # the text has ended; the log, and its worker, shall too
        entry = self._entries[live.response_id]
        self._close_soon(entry, closed, needed=lambda: closer.is_of_use(live.job))

    def live_ended(self, live: Live) -> None:
        entry = self._entries[live.response_id]
        self._remove(entry)
        self._on_ended(entry)

    # -- who reads them -----------------------------------------------------------------------------

    def live_attended(self, live: Live) -> None:
        entry = self._entries.get(live.response_id)
        if entry is None:
            return
        entry.attended = True
        if entry.grace is not None:
            entry.grace.cancel()
            entry.grace = None
        self._tell_of(entry)

    def live_deserted(self, live: Live) -> None:
        """A dropped connection is not a cancel: the client may come back within the grace time."""
        entry = self._entries.get(live.response_id)
        if entry is not None:
            self._set_grace(entry)

    def live_left(self, live: Live) -> None:
        """Count what was generated for nobody. Of one with clients elsewhere, no gateway can tell."""
        if not live.elsewhere:
            metrics.TOKENS_UNREAD.labels(model=live.model_name).inc(len(live.log.ids) - live.read_tokens)

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
        entry.grace = asyncio.get_running_loop().call_later(self._grace_s, self._grace_passed, entry)

    def _set_deadline(self, entry: Entry) -> None:
        left_s = entry.live.job.deadline_unix_ms / 1000 - time.time()
        loop = asyncio.get_running_loop()
        entry.deadline = loop.call_later(max(0.0, left_s), self._deadline_passed, entry)

    def _grace_passed(self, entry: Entry) -> None:
        entry.grace = None
        live = entry.live
        if live.attended or not self._broker.connected:
            return  # without the broker, nobody could be heard: the reconnect sets the time anew
        if entry.accepted is None and not entry.attended:
            self._remove(entry)  # it was only looked at
        else:
            deserted = lambda: live.end is None and not live.attended  # noqa: E731
            self._close_soon(entry, Closed(reason="cancelled"), needed=deserted)

    def _deadline_passed(self, entry: Entry) -> None:
        closed = Closed(reason="deadline", code="deadline_exceeded")
        self._close_soon(entry, closed, needed=lambda: entry.live.end is None)

    def _close_soon(self, entry: Entry, closed: Closed, *, needed: Callable[[], bool]) -> None:
        """While ``needed``; one closing at a time, but a stop string ends the response here and now: whatever
        else was under way is given up."""
        if entry.closing and closed.reason != "stop":
            return
        entry.closing = True

        async def close() -> None:
            try:
                await closer.close_surely(self._broker, entry.live.job, closed, needed)
            finally:
                entry.closing = False

        self._background.spawn(close(), f"close {entry.live.response_id}")


def _stop_timers(entry: Entry) -> None:
    for timer in (entry.deadline, entry.grace):
        if timer is not None:
            timer.cancel()
