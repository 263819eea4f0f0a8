"""A place for some streams: one connection at a time, replaced by another whenever it breaks or its gateway
goes away. Must not know readers, nor how many links there are."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, cycle

from gateway.client.backoff import Backoff
from gateway.client.connection import Connection, Heartbeat
from gateway.client.errors import JsonObject, ResponseError, of_error_event
from gateway.client.follower import Follower
from gateway.client.stream import TERMINALS

Notice = Callable[[str, JsonObject], None]
TRY_LATER = 1013  # close code: this gateway is full
GOOD_AFTER_S = 5.0  # a connection that lived so long was a good one, though nothing was asked on it


@dataclass(frozen=True)
class Site:
    """What all links of a client share."""

    urls: Sequence[str]
    api_key: str | None
    heartbeat: Heartbeat
    notice: Notice


class Link:
    """``first``: which of the URLs it tries first; the others follow in their order."""

    def __init__(self, site: Site, first: int) -> None:
        self._site = site
        self._urls = cycle([*site.urls[first:], *site.urls[:first]])
        self._lanes = count()
        self._followers: dict[Follower, Connection | None] = {}  # and where each was attached last
        self._wanted = asyncio.Event()  # set while there are followers
        self._stirred = asyncio.Event()  # something for _attend to look at
        self._current: Connection | None = None
        self._backoff = Backoff(random.random)
        # why there is no connection
        self._trouble = ResponseError("unreachable", "no gateway was tried yet", status=503)

    # -- its client -----------------------------------------------------------------------------------

    @property
    def load(self) -> int:
        """Responses that the gateway counts or will count on this connection."""
        if self._current is None:
            return len(self._followers)
        elsewhere = sum(follower.state.lane not in self._current.lanes for follower in self._followers)
        return elsewhere + len(self._current.lanes)

    def add(self, follower: Follower) -> None:
        self._followers[follower] = None
        self._wanted.set()
        self._stirred.set()

    def remove(self, follower: Follower) -> None:
        follower.leave()
        self._followers.pop(follower, None)
        if not self._followers:
            self._wanted.clear()

    async def cancel(self, follower: Follower) -> None:
        """Ask for the end of its response, now and on every connection that follows."""
        events, connection = follower.state.cancel(), self._followers.get(follower)
        if connection is not None:
            await connection.send(events)

    async def run(self) -> None:
        """Until cancelled. A fault of ours, or of the observer, is raised in the streams."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._attend(), name="attend-streams")
                await self._stay_connected(tasks)
        except Exception as fault:
            self._fail_all(fault)

    # -- connections ----------------------------------------------------------------------------------

    async def _stay_connected(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            previous, connection = self._current, await self._connect()
            self._current = connection
            tasks.create_task(self._read(connection), name=f"read {connection.url}")
            for follower in list(self._followers):
                await self._attach(follower, connection)
            if previous is not None:
                await previous.close()
            await connection.over_or_going.wait()

    async def _connect(self) -> Connection:
        """The next URL that answers; at once the first time. Not before somebody wants it. The time that a
        gateway asked for is shared among the URLs, since the others are tried first."""
        wait_s = self._backoff.next_s((self._trouble.retry_after_s or 0.0) / len(self._site.urls))
        while True:
            await self._wanted.wait()
            await asyncio.sleep(wait_s)
            try:
                connection = await Connection.open(next(self._urls), self._site.heartbeat, self._site.api_key)
            except ResponseError as trouble:
                self._trouble = trouble
                self._site.notice("unreachable", {"reason": trouble.message})
                wait_s = self._backoff.next_s()
            else:
                self._site.notice("connected", {"url": connection.url})
                return connection

    async def _read(self, connection: Connection) -> None:
        code, reason = await connection.read(self._take)
        connection.set_over()
        now = time.monotonic()
        if now - connection.opened_at >= GOOD_AFTER_S:
            self._backoff.reset()
        lost = ResponseError("unreachable", f"{connection.url} closed with {code}: {reason}", status=503)
        unwanted = 4400 <= code < 4500
        self._trouble = (connection.refusal if unwanted or code == TRY_LATER else None) or lost
        self._site.notice("disconnected", {"url": connection.url, "code": code, "reason": reason})
        for lane, follower in connection.lanes.items():
            follower.state.lost(lane, now)
        connection.lanes.clear()
        if unwanted:  # nothing to wait for
            self._fail_all(connection.refusal or ResponseError("connection_refused", reason, status=403))
        self._stirred.set()

    def _fail_all(self, error: Exception) -> None:
        for follower in self._followers:
            follower.fail(error)

    # -- streams --------------------------------------------------------------------------------------

    async def _attend(self) -> None:
        """Attaches whoever waits and ends whoever has waited for too long."""
        while True:
            self._stirred.clear()
            connection, now = self._current, time.monotonic()
            for follower in list(self._followers):
                if follower.state.exhausted(now):
                    follower.give_up(self._trouble)
                elif connection is not None and follower.state.due(now):
                    await self._attach(follower, connection)
            await self._until_stirred()

    async def _until_stirred(self) -> None:
        connected = self._current is not None and self._current.open_to_more
        looks = [follower.state.next_look(connected=connected) for follower in self._followers]
        soonest = min((look for look in looks if look is not None), default=None)
        try:
            async with asyncio.timeout(None if soonest is None else max(0.0, soonest - time.monotonic())):
                await self._stirred.wait()
        except TimeoutError:
            pass

    async def _attach(self, follower: Follower, connection: Connection) -> None:
        state = follower.state
        if state.over or not connection.open_to_more or state.lane in connection.lanes:
            return
        lane = f"lane_{next(self._lanes)}"
        connection.lanes[lane] = follower
        self._followers[follower] = connection
        creates = state.response_id is None
        events = state.attach(lane, time.monotonic())
        await (connection.create(lane, events) if creates else connection.send(events))

    # -- events ---------------------------------------------------------------------------------------

    def _take(self, connection: Connection, event: JsonObject) -> None:
        kind = event.get("type")
        if kind == "error":
            self._refused(connection, event)
        elif kind == "pong":
            connection.note_pong(event)
        elif kind == "session.going_away":
            self._going_away(connection)
        elif (follower := connection.lanes.get(event.get("stream_id", ""))) is not None:
            self._heard(connection, follower, event)

    def _heard(self, connection: Connection, follower: Follower, event: JsonObject) -> None:
        if not (connection.heard or connection.going):
            connection.heard = True
            self._backoff.reset()
        state, lane = follower.state, event["stream_id"]
        after, recovering = state.after, state.recovering
        follower.take(lane, event)
        if event["type"] in TERMINALS:
            del connection.lanes[lane]
        if recovering and not state.recovering:
            detail = {"url": connection.url, "response_id": state.response_id, "starting_after": after}
            self._site.notice("resumed", detail)

    def _going_away(self, connection: Connection) -> None:
        self._trouble = ResponseError("going_away", f"{connection.url} is shutting down", status=503)
        connection.set_going()

    def _refused(self, connection: Connection, event: JsonObject) -> None:
        """The error names the lane; that of a cancel as ``event_id``, which leaves the lane as it is."""
        error = of_error_event(event)
        lane = event.get("stream_id") or event.get("event_id")
        if lane is None:
            connection.refusal = error  # if it is of the connection, that is closed next
            lane = connection.refused_unread
        follower = connection.lanes.get(lane)
        if follower is None:
            return
        if "event_id" not in event:
            del connection.lanes[lane]
        if error.code == "going_away":
            follower.state.lost(lane, time.monotonic())
            self._going_away(connection)
        else:
            follower.refused(lane, error, time.monotonic())
        self._stirred.set()
