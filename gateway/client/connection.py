"""One WebSocket while it lives: JSON objects in and out, and who hears which lane of it. Must not know when
to connect again, nor what a stream does when its connection is gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from gateway.client.errors import JsonObject, ResponseError
from gateway.client.follower import Follower

CLOSE_S = 2.0  # for the close frame to be answered
MAX_MESSAGE_BYTES = 64 << 20  # an end repeats the whole text, with its log probabilities if asked for
ABNORMAL = 1006  # RFC 6455: no close frame came


@dataclass(frozen=True)
class Heartbeat:
    """A protocol ping every ``interval_s``; no pong for ``timeout_s`` breaks the connection. ``connect_s``:
    for the connection and its handshake."""

    interval_s: float
    timeout_s: float
    connect_s: float


class Connection:
    """``lanes``: who hears which ``stream_id``; one that its reader has left stays until its response ends,
    because the gateway counts it. ``over_or_going`` is set once nothing new should be asked here."""

    def __init__(self, url: str, socket: ClientConnection) -> None:
        self.url = url
        self.lanes: dict[str, Follower] = {}  # at most what the gateway allows on one connection
        self.over = False
        self.going = False
        self.over_or_going = asyncio.Event()
        self.heard = False  # an event of a stream
        self.refusal: ResponseError | None = None  # of the connection, told before it is closed
        self.opened_at = time.monotonic()
        self._socket = socket
        self._sending = asyncio.Lock()  # around a create and its ping
        self._unread: deque[str] = deque()  # lanes of creates that the gateway may not have read yet

    @classmethod
    async def open(cls, url: str, heartbeat: Heartbeat, api_key: str | None = None) -> Connection:
        """Raises ``ResponseError`` (unreachable)."""
        try:
            socket = await connect(
                url,
                additional_headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
                compression=None,  # tokens are too short for it
                open_timeout=heartbeat.connect_s,
                ping_interval=heartbeat.interval_s,
                ping_timeout=heartbeat.timeout_s,
                close_timeout=CLOSE_S,
                max_size=MAX_MESSAGE_BYTES,
            )
        except (OSError, WebSocketException) as error:
            reason = str(error) or type(error).__name__
            raise ResponseError("unreachable", f"{url}: {reason}", status=503) from error
        return cls(url, socket)

    @property
    def open_to_more(self) -> bool:
        return not (self.over or self.going)

    async def send(self, events: list[JsonObject]) -> None:
        """A loss is not told here: ``read`` tells it, to all."""
        async with self._sending:
            await self._send(events)

    async def create(self, lane: str, events: list[JsonObject]) -> None:
        """Sends what creates a response on ``lane``. The ping behind it tells when the gateway has read it:
        what it could not even read (too large, no JSON to it), it refuses without a name."""
        async with self._sending:
            self._unread.append(lane)
            await self._send([*events, {"type": "ping", "event_id": lane}])

    async def _send(self, events: list[JsonObject]) -> None:
        try:
            for event in events:
                await self._socket.send(json.dumps(event))
        except ConnectionClosed:
            pass

    def note_pong(self, event: JsonObject) -> None:
        if self._unread and self._unread[0] == event.get("event_id"):
            self._unread.popleft()

    @property
    def refused_unread(self) -> str:
        """The lane that a refusal without a name is about; empty: the connection itself."""
        return self._unread[0] if self._unread else ""

    async def read(self, take: Callable[[Connection, JsonObject], None]) -> tuple[int, str]:
        """Gives every event to ``take`` until the connection is gone; returns the close code and reason."""
        try:
            while True:
                take(self, json.loads(await self._socket.recv()))
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                return ABNORMAL, closed.sent.reason if closed.sent is not None else ""
            return closed.rcvd.code, closed.rcvd.reason
        finally:
            await self._socket.close()

    async def close(self) -> None:
        await self._socket.close()

    def set_going(self) -> None:
        self.going = True
        self.over_or_going.set()

    def set_over(self) -> None:
        self.over = True
        self.over_or_going.set()
