"""uvicorn's WebSocket with the bounds that it lacks, and made for thousands that are open and idle. Must not
know any route.

uvicorn 0.54 has no limit for the number of a message's fragments (an empty one weighs nothing), none for the
pongs that a client asks for and does not read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from broker.metrics import SENT_BYTES, SENT_MESSAGES
from gateway.connection_limits import OpenConnections, SlowReader
from gateway.heartbeat import Heartbeat
from gateway.held import Held
from gateway.inbox import Inbox
from gateway.outlet import HasOutlet, Outlet, text_frame
from schemas.config import Gateway

MAX_FRAGMENTS = 4096  # of one WebSocket message
MAX_PONGS_BYTES = 256 << 10  # unread, of a client that pings and does not read
LAST_WORDS_S = 5.0  # for a client that is cut off to take what it was sent
PING, PONG = b"\x89\x04", b"\x8a\x84"  # with a payload of four bytes, RFC 6455 section 5.5
PONG_BYTES = 10
_MESSAGES, _BYTES = SENT_MESSAGES.labels(transport="websocket"), SENT_BYTES.labels(transport="websocket")
TRY_AGAIN_LATER, GOING_AWAY, TOO_BIG = 1013, 1001, 1009  # close codes, RFC 6455 and IANA


def websocket_protocol(limits: Gateway) -> type[asyncio.Protocol]:
    """For one server's ``uvicorn.Config(ws=…)``."""
    heartbeat = Heartbeat(min(limits.ping_interval_s, limits.idle_s))

    class WebSocket(BoundedWebSocket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(limits, heartbeat, *args, **kwargs)

    return WebSocket


class BoundedWebSocket(WebSocketsSansIOProtocol, HasOutlet):
    """uvicorn's, with the bounds that it lacks, and lighter: thousands are open and idle at once, so a beat
    (``gateway/heartbeat.py``) costs a ping and its pong and nothing else."""

    def __init__(self, limits: Gateway, heartbeat: Heartbeat, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue = Inbox()  # type: ignore[assignment]  # all of a queue that is used
        self._limits = limits
        self._heartbeat = heartbeat
        self._give_back_place: Callable[[], None] | None = None
        self._busy = False  # a message came or went since the last beat
        self._quiet_since_s = time.monotonic()
        self._unparsed_bytes = 0  # of a frame that is not all here
        self._last_words: asyncio.TimerHandle | None = None
        self._slow_reader: SlowReader | None = None  # while it is one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, Held(self.transport))

    def keep_place(self, open_connections: OpenConnections, place: str) -> None:
        self._give_back_place = partial(open_connections.give_back, place)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._last_words is not None:
            self._last_words.cancel()
        if self._slow_reader is not None:
            self._slow_reader.end()
        if self._give_back_place is not None:
            self._give_back_place()
            self._give_back_place = None
        super().connection_lost(exc)

    # -- heartbeat ------------------------------------------------------------------------------------

    def start_keepalive(self) -> None:
        self._heartbeat.join(self)

    def stop_keepalive(self) -> None:
        self._heartbeat.leave(self)

    def beat(self, now_s: float, payload: bytes) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        if self._busy:
            self._busy, self._quiet_since_s = False, now_s
        elif now_s - self._quiet_since_s >= self._limits.idle_s:
            self._close(GOING_AWAY, "nothing was said here for long; connect again when there is")
            return
        silent_s = now_s - self.ping_sent_at
        if self.pending_ping_payload is None:
            if silent_s > self._limits.ping_interval_s / 2:  # beats come more often where ``idle_s`` is short
                self.pending_ping_payload, self.ping_sent_at = payload, now_s
                self.transport.write(PING + payload)
        elif silent_s >= self._limits.ping_timeout_s:
            self.keepalive_timeout()

    def handle_pong(self, event: Frame) -> None:
        if bytes(event.data) == self.pending_ping_payload:
            self.pending_ping_payload = None

    def data_received(self, data: bytes) -> None:
        """A pong that is all there is need not go where frames are taken apart, which costs tens of us."""
        if self._unparsed_bytes == 0 and len(data) == PONG_BYTES and self._answers(data):
            self.pending_ping_payload = None
            return
        self._unparsed_bytes += len(data)
        super().data_received(data)

    def _answers(self, data: bytes) -> bool:
        """RFC 6455 section 5.3: masked."""
        if self.pending_ping_payload is None or not data.startswith(PONG):
            return False
        mask, masked = int.from_bytes(data[2:6], "big"), int.from_bytes(data[6:10], "big")
        return mask ^ masked == int.from_bytes(self.pending_ping_payload, "big")

    def handle_events(self) -> None:
        for event in self.conn.events:
            if isinstance(event, Frame):
                self._unparsed_bytes -= size_of_masked(len(event.data))
            else:
                self._unparsed_bytes = 0  # the request
        super().handle_events()

    # -- what comes and goes --------------------------------------------------------------------------

    def send_receive_event_to_app(self) -> None:
        self._busy = True
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        self._busy = True
        if text := message.get("text"):
            _MESSAGES.value += 1
            _BYTES.value += len(text) if text.isascii() else len(text.encode())
        await super().send(message)

    def outlet(self, _: Mapping[str, Any]) -> Outlet:
        return self

    @property
    def is_open(self) -> bool:
        ended = self.close_sent or self.disconnected or self.transport.is_closing()
        return self.handshake_complete and not ended and self.writable.is_set()

    def put(self, *data: bytes) -> None:
        self.transport.write(self._framed(data))

    def hold(self, *data: bytes) -> None:
        cast(Held, self.transport).hold(self._framed(data))

    def _framed(self, messages: Sequence[bytes]) -> bytes:
        self._busy = True
        _MESSAGES.value += len(messages)
        _BYTES.value += sum(map(len, messages))
        return b"".join(map(text_frame, messages))

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self.conn.fail(TOO_BIG, "a message of too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        super().handle_ping()
        if self.transport.get_write_buffer_size() > MAX_PONGS_BYTES:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_reader = SlowReader(self._limits.slow_reader_s, self._cut_off)
        self._slow_reader.begin(self.transport)

    def resume_writing(self) -> None:
        if self._slow_reader is not None:
            self._slow_reader.end()
            self._slow_reader = None
        super().resume_writing()

    def _cut_off(self) -> None:
        self._close(TRY_AGAIN_LATER, "this connection takes too little; connect again and resume")
        self._last_words = self.loop.call_later(LAST_WORDS_S, self.transport.abort)

    def _close(self, code: int, reason: str) -> None:
        """Without waiting until the client takes anything; the application is told that it has gone."""
        if self.close_sent or self.transport.is_closing() or not self.handshake_complete:
            self.transport.abort()
            return
        self.stop_keepalive()
        self.conn.fail(code, reason)
        self.handle_parser_exception()
        self.disconnected = True  # whoever waits to send is let go, and told so
        self.writable.set()


def size_of_masked(payload_bytes: int) -> int:
    """Of a client's frame, RFC 6455 section 5.2."""
    if payload_bytes < 126:
        return 6 + payload_bytes
    return (8 if payload_bytes < 1 << 16 else 14) + payload_bytes
