"""A WebSocket with one response at a time (RFC 6455), read by ``frames``. Must not know what events mean.

CPU a delta, measured as in ``http_connection``: 25 us, and 47 with the websockets package's own client.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import time
from collections.abc import Callable
from typing import cast

from websockets.frames import Frame, Opcode

from deploy.bench.exchange import Exchange
from deploy.bench.frames import CLOSE, PING, TEXT, BadFrame, FrameReader
from deploy.bench.plan import Address
from deploy.bench.streams import End, refusal

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NO_CODE = 1005


class WsConnection(asyncio.Protocol):
    """``opened`` is resolved with None, or with why the server refused. ``freed`` is called whenever it may
    be asked again, ``gone`` once it cannot be any more."""

    def __init__(
        self,
        address: Address,
        api_key: str,
        freed: Callable[[WsConnection], None],
        gone: Callable[[WsConnection], None],
    ) -> None:
        self._freed = freed
        self._gone = gone
        self._key = base64.b64encode(os.urandom(16))
        self._hello = _hello(address, api_key, self._key)
        self._greeting: bytes | None = b""  # None once it was read
        self._frames = FrameReader()
        self._exchange: Exchange | None = None
        self._early: list[bytes] = []  # why it refuses whatever may be asked, told before anything was
        self._close_code: int | None = None
        self._how = "connection closed"
        self.opened: asyncio.Future[End | None] = asyncio.get_running_loop().create_future()

    # -- its user -----------------------------------------------------------------------------------

    def ask(self, body: bytes, exchange: Exchange) -> None:
        self._exchange = exchange
        if self._early:
            self._take(exchange, self._early, time.monotonic())
        elif self._transport.is_closing():
            self._break(self._how, time.monotonic())
        else:
            self._transport.write(Frame(Opcode.TEXT, body).serialize(mask=True))

    def busy_with(self, exchange: Exchange) -> bool:
        return self._exchange is exchange

    def abort(self) -> None:
        self._transport.abort()

    # -- asyncio --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        if self._greeting is not None:
            rest = self._greet(data)
            if not rest:
                return
            data = rest
        try:
            frames = self._frames.feed(data)
        except BadFrame as error:
            self._break(f"no WebSocket: {error}", now_s)
            return
        texts = [payload for opcode, payload in frames if opcode == TEXT]
        if len(texts) != len(frames):
            for opcode, payload in frames:
                self._control(opcode, payload)
        if self._exchange is None:
            self._early = [text for text in texts if b'"error"' in text] or self._early
        elif texts:
            self._take(self._exchange, texts, now_s)

    def _take(self, exchange: Exchange, texts: list[bytes], now_s: float) -> None:
        exchange.feed(texts, now_s)
        if exchange.end is not None:
            self._exchange = None
            if self._close_code is None:
                self._freed(self)
            exchange.settle()

    def connection_lost(self, error: Exception | None) -> None:
        self._gone(self)
        if not self.opened.done():
            self.opened.set_result(End("unreachable", "closed during the handshake"))
        if self._close_code is not None:
            self._how = f"closed with {self._close_code}"
        elif error is not None:
            self._how = "connection reset"
        self._break(self._how, time.monotonic())

    def _break(self, reason: str, now_s: float) -> None:
        self._transport.abort()
        if (exchange := self._exchange) is not None:
            self._exchange = None
            exchange.over(End("broken", reason), now_s)
            exchange.settle()

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self._transport.write(Frame(Opcode.PONG, payload).serialize(mask=True))
        elif opcode == CLOSE:
            self._close_code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else _NO_CODE
            self._transport.write(Frame(Opcode.CLOSE, payload[:2]).serialize(mask=True))
            self._transport.close()

    def _greet(self, data: bytes) -> bytes:
        """Reads the answer to the handshake; returns what stands behind it."""
        assert self._greeting is not None
        head, end, rest = (self._greeting + data).partition(b"\r\n\r\n")
        if not end:
            self._greeting = head
            return b""
        self._greeting = None
        status = head.split(b" ", 2)[1] if head.startswith(b"HTTP/1.1 ") else b""
        expected = base64.b64encode(hashlib.sha1(self._key + _GUID).digest())
        if status == b"101" and expected in head:
            self.opened.set_result(None)
            return rest
        refused = refusal(int(status), rest) if status.isdigit() and status != b"101" else None
        self.opened.set_result(refused or End("failed", "no WebSocket"))
        self._transport.abort()
        return b""


def _hello(address: Address, api_key: str, key: bytes) -> bytes:
    lines = [
        f"GET {address.path} HTTP/1.1",
        f"Host: {address.authority}",
        "User-Agent: headrace-bench",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key.decode()}",
        "Sec-WebSocket-Version: 13",
        *([f"Authorization: Bearer {api_key}"] if api_key else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()
