"""HTTP/1.1 with one request at a time, its answer read as server-sent events. Must not know what events mean.

By hand on httptools, which the gateway needs anyway. CPU a delta, sockets included, 100 streams at 20 ms a
token, in one run: 27 us; aiohttp 41; httpx 170. Of these 6 are ours, 0.3 of them the parser's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools

from deploy.bench.exchange import Exchange
from deploy.bench.plan import Address
from deploy.bench.sse import EventStream
from deploy.bench.streams import End, refusal

_MAX_REFUSAL_BYTES = 64 << 10  # of the body of a refusal; what is beyond is not read


class HttpConnection(asyncio.Protocol):
    """``freed`` is called whenever it may be asked again, ``gone`` once it cannot be any more."""

    def __init__(
        self,
        address: Address,
        api_key: str,
        freed: Callable[[HttpConnection], None],
        gone: Callable[[HttpConnection], None],
    ) -> None:
        self._head = _head(address, api_key)
        self._freed = freed
        self._gone = gone
        self._exchange: Exchange | None = None
        self._payloads: list[bytes] = []
        self._lost: str | None = None  # how

    # -- its user -----------------------------------------------------------------------------------

    def ask(self, body: bytes, exchange: Exchange) -> None:
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._events: EventStream | None = None
        self._refusal: list[bytes] = []
        self._streams = self._complete = self._reusable = False
        if self._lost is not None:
            exchange.over(End("broken", self._lost), time.monotonic())
            exchange.settle()
        else:
            self._transport.write(self._head % len(body) + body)

    def busy_with(self, exchange: Exchange) -> bool:
        return self._exchange is exchange

    def abort(self) -> None:
        self._transport.abort()

    # -- asyncio --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        exchange = self._exchange
        if exchange is None:
            return self._transport.abort()  # nothing was asked
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            exchange.over(End("broken", f"no HTTP: {error}"), now_s)
            return self._transport.abort()
        if self._payloads:
            payloads, self._payloads = self._payloads, []
            exchange.feed(payloads, now_s)
        if self._complete:
            self._finish(exchange, now_s)
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = "connection reset" if error is not None else "connection closed"
        self._gone(self)
        if (exchange := self._exchange) is not None:
            exchange.over(End("broken", self._lost), time.monotonic())
            exchange.settle()

    # -- httptools ------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._streams = value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        if self._streams and self._parser.get_status_code() == 200:
            self._events = EventStream()

    def on_body(self, body: bytes) -> None:
        if self._events is not None:
            self._payloads += self._events.feed(body)
        elif sum(map(len, self._refusal)) < _MAX_REFUSAL_BYTES:
            self._refusal.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._parser.get_status_code() >= 200  # 1xx goes before the answer
        self._reusable = self._parser.should_keep_alive()  # the parser forgets it when this returns

    def _finish(self, exchange: Exchange, now_s: float) -> None:
        if self._events is not None:
            exchange.over(exchange.stream.closed(), now_s)
        else:
            status = self._parser.get_status_code()
            exchange.over(refusal(status, b"".join(self._refusal)), now_s)
        self._exchange = None
        if self._reusable:
            self._freed(self)
        else:
            self._transport.close()
        exchange.settle()


def _head(address: Address, api_key: str) -> bytes:
    """With a place for the length of the body."""
    lines = [
        f"POST {address.path} HTTP/1.1".replace("%", "%%"),
        f"Host: {address.authority}",
        "User-Agent: headrace-bench",
        "Accept: text/event-stream",
        "Content-Type: application/json",
        *([f"Authorization: Bearer {api_key}".replace("%", "%%")] if api_key else []),
        "Content-Length: %d",
    ]
    return "\r\n".join([*lines, "", ""]).encode()
