"""Server-sent events over HTTP: what a response's reader says, as it says it.

Must not know any API's JSON: a surface brings the frames. A slow client holds one batch of frames, since
the next updates are asked for (and merged) only when the last were taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.labelled import labelled
from broker.metrics import STREAMS
from gateway.api.errors import internal
from gateway.api.front import Front
from gateway.api.http_request import ClientGone, give_up_all
from gateway.api.token_logprobs import off_loop
from gateway.generation import Ended, Parsed, Text, Update, is_urgent
from gateway.live import Live
from gateway.live_reader import LiveReader
from gateway.outlet import Outlet, count_events, outlet_of
from schemas.errors import HeadraceError

log = logging.getLogger(__name__)
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
]


@dataclass(frozen=True, slots=True)
class Source:
    """One response and how it is shown. ``frames`` turns an update into bytes for the wire."""

    live: Live
    frames: Callable[[Update], bytes]
    from_token: int = 0


class EventStream(Response):
    """What the sources say, as it comes; where one of several fails, the others end. ``failed`` turns a bug
    met on the way into bytes. A comment goes out when nothing else did for ``gateway.ping_interval_s``, so
    that proxies keep the connection and a dead client is noticed."""

    def __init__(
        self,
        front: Front,
        sources: Sequence[Source],
        *,
        opening: bytes = b"",
        failed: Callable[[HeadraceError], bytes],
        headers: dict[str, str],
    ) -> None:
        super().__init__()
        self._front = front
        self._sources = sources
        self._alone = len(sources) == 1
        self._readers = [front.reader(source.live, source.from_token) for source in sources]
        self._opening = opening
        self._failed = failed
        self._more = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._outlet: Outlet | None = None
        self._writing = asyncio.Lock()
        self._silent = True
        self._heartbeat: asyncio.TimerHandle | None = None
        self._done = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._outlet = outlet_of(scope)
        streams = labelled(STREAMS, self._sources[0].live.job.presentation.api, "sse")
        streams.inc(len(self._sources))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *self._more]})
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(_watch(receive), name="watch-event-stream")
                self._beat_later(tasks, send)
                await self._pump(send)
                watching.cancel()
        except* ClientGone:
            pass  # a response goes on for the grace time, and can be resumed; of several only one is known
        finally:
            if self._heartbeat is not None:
                self._heartbeat.cancel()
            streams.dec(len(self._sources))
            for reader in self._readers:
                self._front.leave(reader)
            if not self._alone:
                await give_up_all(self._front, [source.live for source in self._sources])

    async def _pump(self, send: Send) -> None:
        with self._front.answering(new=False):
            try:
                if self._opening:
                    await self._write(send, self._opening, urgent=False)
                await self._follow_all(send)
            except HeadraceError as error:  # lost to this gateway: to be asked for again
                await self._write(send, self._failed(error))
            except Exception:
                log.exception("an event stream failed")
                await self._write(send, self._failed(internal()))
            await self._write(send, b"", last=True)

    async def _follow_all(self, send: Send) -> None:
        following = [
            self._follow(source, reader, send)
            for source, reader in zip(self._sources, self._readers, strict=True)
        ]
        if self._alone:
            await following[0]
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(work, name="follow-choice") for work in following]
                for done in asyncio.as_completed(running):
                    if not await done:
                        break
                for task in running:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _follow(self, source: Source, reader: LiveReader, send: Send) -> bool:
        """Whether it ended well."""
        reader.divert(self._front.tick, partial(self._show, source.frames))
        while updates := await reader.next():
            data = await off_loop(source.live, updates, partial(_joined, source.frames, updates))
            last = self._alone and isinstance(updates[-1], Ended)  # what ends the body goes along with it
            if data or last:
                await self._write(send, data, last=last, urgent=is_urgent(updates))
        end = source.live.end
        return end is not None and end.outcome not in ("failed", "cancelled")

    def _show(self, frames: Callable[[Update], bytes], text: Text | Parsed) -> bool:
        outlet = self._outlet
        if outlet is None or self._done or not outlet.is_open:
            return False
        if data := frames(text):
            self._silent = False
            outlet.put(data)
        return True

    async def _write(self, send: Send, data: bytes, *, last: bool = False, urgent: bool = True) -> None:
        async with self._writing:
            if self._done:
                return
            self._silent = False
            self._done = last
            if not urgent and self._outlet is not None and self._outlet.is_open:
                self._outlet.hold(data)
                return
            count_events(data)
            await send({"type": "http.response.body", "body": data, "more_body": not last})

    def _beat_later(self, tasks: asyncio.TaskGroup, send: Send) -> None:
        interval_s = self._front.limits.ping_interval_s
        self._heartbeat = asyncio.get_running_loop().call_later(interval_s, self._beat, tasks, send)

    def _beat(self, tasks: asyncio.TaskGroup, send: Send) -> None:
        if self._silent:
            tasks.create_task(self._write(send, b": waiting\n\n"), name="beat-event-stream")
        self._silent = True
        self._beat_later(tasks, send)


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


def _joined(frames: Callable[[Update], bytes], updates: list[Update]) -> bytes:
    return b"".join(map(frames, updates))
