"""One WebSocket: whole JSON objects in, whole messages out, one at a time, until either side is done.

Must not know what the messages mean. Protocol pings, their timeout and the limit of a frame are the
server's (``gateway/server.py``); what a message may weigh is checked here, where it can be answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.api.correlation import request_id, traceparent
from gateway.api.errors import socket_event
from gateway.api.parse_json import JsonObject, decode_object, too_large
from gateway.auth.shown import open_subprotocol
from gateway.generation import Generation
from gateway.outlet import outlet_of
from gateway.round_trip import rtt_ms
from schemas.errors import HeadraceError

TOGETHER_BYTES = 1 << 14  # of messages that go in one write: more may fill the connection's buffer
SERVICE_RESTART = 1012  # close code: come back at once


async def accept(websocket: WebSocket) -> None:
    """A browser that offers subprotocols gets one back, or it would hang up; never a credential."""
    await websocket.accept(subprotocol=open_subprotocol(websocket.scope.get("subprotocols") or ()))


class SocketClosed(Exception):
    """Either side closed, or the connection broke."""


class GoingAway(msgspec.Struct, frozen=True):
    time_left_ms: int
    type: Literal["session.going_away"] = "session.going_away"


class Socket:
    """Sends wait until the client's window has room (a lock, not a queue: whoever has news waits, and
    news of one response merges while it waits), so a client that reads nothing holds one message of each
    response, or a few small ones. One that reads too slowly is closed with 1013
    (``gateway/websocket_protocol.py``); one whose host is gone is cut off by the kernel (TCP_USER_TIMEOUT,
    ``gateway/server.py``) or the missing pong."""

    def __init__(self, websocket: WebSocket, max_message_bytes: int) -> None:
        self._websocket = websocket
        self._max_message_bytes = max_message_bytes
        self.outlet = outlet_of(websocket.scope)
        self._sending = asyncio.Lock()
        self._session: asyncio.TaskGroup | None = None
        self._leaving: _Leaving | None = None

    def as_asked(self, generation: Generation) -> Generation:
        """With what the connection says: how far its client is, as of now, and the names that the handshake
        gave all of its requests. Raises ``invalid_value``."""
        return replace(
            generation,
            rtt_ms=rtt_ms(self._websocket.scope),
            traceparent=traceparent(self._websocket),
            request_id=request_id(self._websocket),
        )

    async def receive(self) -> JsonObject:
        """The next message as an object. Raises ``HeadraceError`` for one that is none (go on reading),
        ``SocketClosed``."""
        try:
            message = await self._websocket.receive()
        except RuntimeError:  # Starlette: already disconnected
            raise SocketClosed from None
        if message["type"] == "websocket.disconnect":
            raise SocketClosed
        data: str | bytes = message.get("text") or message.get("bytes") or ""
        size = len(data) if isinstance(data, bytes) or data.isascii() else len(data.encode())
        if size > self._max_message_bytes:
            raise too_large(self._max_message_bytes)
        return decode_object(data)

    async def send(self, message: bytes) -> None:
        """Raises ``SocketClosed``."""
        await self._send([message], urgent=True)

    async def send_all(self, messages: Iterable[bytes], *, urgent: bool = True) -> None:
        """In one write where they are small; each is asked for when those before it have room. What is not
        urgent may wait for what is sent next. Raises ``SocketClosed``."""
        together: list[bytes] = []
        size = 0
        for message in messages:
            together.append(message)
            size += len(message)
            if size >= TOGETHER_BYTES:
                await self._send(together, urgent=urgent)
                together, size = [], 0
        if together:
            await self._send(together, urgent=urgent)

    async def _send(self, messages: Sequence[bytes], *, urgent: bool) -> None:
        outlet = self.outlet
        if outlet is not None and outlet.is_open:
            (outlet.put if urgent else outlet.hold)(*messages)
            return
        for message in messages:
            async with self._sending:
                try:
                    await self._websocket.send({"type": "websocket.send", "text": message.decode()})
                except (WebSocketDisconnect, RuntimeError):  # RuntimeError: a close was sent already
                    raise SocketClosed from None

    async def error(
        self,
        error: HeadraceError,
        *,
        event_id: str | None = None,
        stream_id: str | None = None,
        response_id: str | None = None,
    ) -> None:
        await self.send(socket_event(error, event_id=event_id, stream_id=stream_id, response_id=response_id))

    async def close(self, code: int, reason: str = "") -> None:
        async with self._sending:
            try:
                await self._websocket.close(code, reason)
            except (WebSocketDisconnect, RuntimeError):
                raise SocketClosed from None

    # -- the gateway's shutdown -----------------------------------------------------------------------

    def attend_shutdown(self, session: asyncio.TaskGroup) -> None:
        """From now on the session is told of a shutdown, by a task of it that raises ``SocketClosed``."""
        self._session = session
        if self._leaving is not None:
            self._leave(self._leaving, session)

    def going_away(self, *, time_left_ms: int) -> None:
        if self._leaving is None:
            self._leaving = _Leaving(msgspec.json.encode(GoingAway(time_left_ms)))
            if self._session is not None:
                self._leave(self._leaving, self._session)

    def hang_up(self) -> None:
        """Behind ``going_away``."""
        if self._leaving is not None:
            self._leaving.hang_up.set()

    def _leave(self, leaving: _Leaving, session: asyncio.TaskGroup) -> None:
        """Passes on the notice, later closes with 1012."""

        async def leave() -> None:
            await self.send(leaving.notice)
            await leaving.hang_up.wait()
            await self.close(SERVICE_RESTART, "this gateway is shutting down; connect again")
            raise SocketClosed

        work = leave()
        try:
            session.create_task(work, name="leave")
        except RuntimeError:  # it is at its end anyway
            work.close()


class _Leaving:
    def __init__(self, notice: bytes) -> None:
        self.notice = notice
        self.hang_up = asyncio.Event()
