"""Server-sent events over HTTP: what a response's reader says, as it says it.

Must not know any API's JSON: a surface brings the frames. A slow client holds one batch of frames, since
the next updates are asked for (and merged) only when the last were taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.errors import internal
from gateway.api.front import Front
from gateway.api.http_request import ClientGone
from gateway.api.token_logprobs import off_loop
from gateway.generation import Update
from gateway.live import Live
from schemas.errors import HeadraceError

log = logging.getLogger(__name__)
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
]


class EventStream(Response):
    """``frames`` turns an update into bytes for the wire; ``failed`` does so for a bug met on the way.
    A comment goes out when nothing else did for ``gateway.ping_interval_s``, so that proxies keep the
    connection and a dead client is noticed."""

    def __init__(
        self,
        front: Front,
        live: Live,
        *,
        from_token: int = 0,
        opening: bytes,
        frames: Callable[[Update], bytes],
        failed: Callable[[HeadraceError], bytes],
        headers: dict[str, str],
    ) -> None:
        super().__init__()
        self._front = front
        self._live = live
        self._reader = front.reader(live, from_token)
        self._opening = opening
        self._frames = frames
        self._failed = failed
        self._more = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._writing = asyncio.Lock()
        self._silent = True
        self._done = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *self._more]})
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch(receive, send), name="watch-event-stream")
                await self._pump(send)
                watching.cancel()
        except* ClientGone:
            pass  # the response goes on for the grace time, and can be resumed
        finally:
            self._front.leave(self._reader)

    async def _pump(self, send: Send) -> None:
        with self._front.answering(new=False):
            try:
                if self._opening:
                    await self._write(send, self._opening)
                while updates := await self._reader.next():
                    if data := await off_loop(self._live, updates, partial(self._joined, updates)):
                        await self._write(send, data)
            except HeadraceError as error:  # lost to this gateway: to be asked for again
                await self._write(send, self._failed(error))
            except Exception:
                log.exception("an event stream failed")
                await self._write(send, self._failed(internal()))
            await self._write(send, b"", last=True)

    def _joined(self, updates: list[Update]) -> bytes:
        return b"".join(map(self._frames, updates))

    async def _write(self, send: Send, data: bytes, *, last: bool = False) -> None:
        async with self._writing:
            if self._done:
                return
            self._silent = False
            self._done = last
            await send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _watch(self, receive: Receive, send: Send) -> None:
        while True:
            try:
                async with asyncio.timeout(self._front.limits.ping_interval_s):
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    raise ClientGone
            except TimeoutError:
                if self._silent:
                    await self._write(send, b": waiting\n\n")
                self._silent = True
