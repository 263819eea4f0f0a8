"""What one TCP connection may cost before, between and beside what its requests are allowed: uvicorn's two
protocols with the bounds that they lack. Must not know any route.

uvicorn 0.54 has no limit for a request's line and headers (nor has llhttp), none for the time that they or a
body take, none for a chunked body's trailers, none for the number of a message's fragments (an empty one
weighs nothing), none for the pongs that a client asks for and does not read.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from broker.settings import ConfigError
from gateway.api.errors import http_answer
from gateway.auth.shown import address_of_host, is_loopback_host
from gateway.round_trip import MeasuredHttp
from schemas.config import Gateway
from schemas.errors import HeadraceError

MAX_HEADERS = 128
MAX_FRAGMENTS = 4096  # of one WebSocket message
MAX_PONGS_BYTES = 256 << 10  # unread, of a client that pings and does not read
SLOWEST_BYTES = 16 << 10  # what a client must take in gateway.slow_reader_s while more waits
SPARE_CONNECTIONS = 128  # beyond max_connections, for those who ask how the gateway is
LAST_WORDS_S = 5.0  # for a client that is cut off to take what it was sent
TRY_AGAIN_LATER, GOING_AWAY, TOO_BIG = 1013, 1001, 1009  # close codes, RFC 6455 and IANA


class OpenConnections:
    """Of one server, by address: they cost a file each, whether or not they ever ask anything. A client may
    have twice as many as it may use, so that the one too many can be told why."""

    def __init__(self, limits: Gateway) -> None:
        """Raises ``ConfigError``."""
        self._most = limits.max_connections + SPARE_CONNECTIONS
        self._most_of_one = 2 * limits.max_connections_per_address
        self._proxies = [_network(text) for text in limits.trusted_proxies]
        self._of: Counter[str] = Counter()
        self._all = 0

    def take(self, host: str) -> str | None:
        """What to give back; None where there are too many."""
        address = address_of_host(host)
        limited = self._most_of_one and not (is_loopback_host(host) or self._is_proxy(host))
        if self._all >= self._most or (limited and self._of[address] >= self._most_of_one):
            return None
        self._all += 1
        self._of[address] += 1
        return address

    def _is_proxy(self, host: str) -> bool:
        """It comes for many; whom it comes for is counted by the requests."""
        return bool(self._proxies) and any(ipaddress.ip_address(host) in proxies for proxies in self._proxies)

    def give_back(self, address: str) -> None:
        self._all -= 1
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]


class SlowReader:
    """Looks, while more waits than the transport's high-water mark, whether enough of it is taken."""

    def __init__(self, within_s: float, cut_off: Callable[[], None]) -> None:
        self._within_s = within_s
        self._cut_off = cut_off
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.Transport) -> None:
        self.end()
        waits = transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._within_s, self._look, transport, waits)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, transport: asyncio.Transport, waited: int) -> None:
        if waited - transport.get_write_buffer_size() >= SLOWEST_BYTES:
            self.begin(transport)
        else:
            self._timer = None
            self._cut_off()


def http_protocol(limits: Gateway) -> type[asyncio.Protocol]:
    """For one server's ``uvicorn.Config(http=…)``."""
    open_connections = OpenConnections(limits)

    class Http(BoundedHttp):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(limits, open_connections, *args, **kwargs)

    return Http


def websocket_protocol(limits: Gateway) -> type[asyncio.Protocol]:
    """For one server's ``uvicorn.Config(ws=…)``."""

    class WebSocket(BoundedWebSocket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(limits, *args, **kwargs)

    return WebSocket


class BoundedHttp(MeasuredHttp):
    def __init__(self, limits: Gateway, open_connections: OpenConnections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._open = open_connections
        self._place: str | None = None
        self._timer: asyncio.TimerHandle | None = None  # until the head, then the body is here
        self._in_head = True
        self._unfinished_bytes = 0  # since the head began or a piece of body came
        self._head_bytes = 0
        self._refusal: HeadraceError | None = None
        self._slow_reader = SlowReader(limits.slow_reader_s, lambda: self.transport.abort())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._place = self._open.take(self.client[0] if self.client else "")
        if self._place is None:
            transport.abort()
        else:
            self._wait(self._limits.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._slow_reader.end()
        self.give_back_place()
        super().connection_lost(exc)

    def give_back_place(self) -> None:
        if self._place is not None:
            self._open.give_back(self._place)
            self._place = None

    # -- what comes -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._in_head and self._timer is None:
            self._wait(self._limits.head_timeout_s)
        self._unfinished_bytes += len(data)
        super().data_received(data)
        if self._unfinished_bytes > self._limits.max_head_bytes and not self.transport.is_closing():
            self._refuse(_head_too_large(self._limits.max_head_bytes))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= MAX_HEADERS:
            self._refusal = _head_too_large(self._limits.max_head_bytes)
            raise self._refusal
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unfinished_bytes = 0
        self._wait(self._limits.body_timeout_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unfinished_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._unfinished_bytes = 0
        self._stop_waiting()
        super().on_message_complete()

    def _count(self, size: int) -> None:
        """The parser stops at what is raised here; ``send_400_response`` says why."""
        self._head_bytes += size
        if self._head_bytes > self._limits.max_head_bytes:
            self._refusal = _head_too_large(self._limits.max_head_bytes)
            raise self._refusal

    def handle_websocket_upgrade(self) -> None:
        self._stop_waiting()
        place, self._place = self._place, None  # goes on to the WebSocket: it is the same connection
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if isinstance(protocol, BoundedWebSocket) and place is not None:
            protocol.keep_place(self._open, place)

    # -- what goes ------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_reader.begin(self.transport)

    def resume_writing(self) -> None:
        self._slow_reader.end()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        problem = "This is no HTTP request."
        self._refuse(self._refusal or HeadraceError("invalid_request", problem))

    # -- when it takes too long -----------------------------------------------------------------------

    def _wait(self, limit_s: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(limit_s, self._too_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        self._refuse(HeadraceError("request_timeout", "The request did not arrive in time."))

    def _may_answer(self) -> bool:
        """Nothing of another answer is to come, nor has begun."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            return True
        return not (cycle.response_started or self._in_head)

    def _refuse(self, error: HeadraceError) -> None:
        """Without the application, which has not seen the request or will find that its client has gone."""
        if self._may_answer():
            answer = http_answer(error, {"connection": "close"})
            lines = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
            status = f"HTTP/1.1 {error.spec.http_status} {error.code}\r\n".encode()
            self.transport.write(status + lines + b"\r\n" + bytes(answer.body))
        self.transport.close()


class BoundedWebSocket(WebSocketsSansIOProtocol):
    def __init__(self, limits: Gateway, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_s = limits.idle_s
        self._give_back_place: Callable[[], None] | None = None
        self._busy = False  # a message came or went since the last look
        self._idle_timer: asyncio.TimerHandle | None = None
        self._last_words: asyncio.TimerHandle | None = None
        self._slow_reader = SlowReader(limits.slow_reader_s, self._cut_off)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._idle_timer = self.loop.call_later(self._idle_s, self._look_for_idle)

    def keep_place(self, open_connections: OpenConnections, place: str) -> None:
        self._give_back_place = lambda: open_connections.give_back(place)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._idle_timer, self._last_words):
            if timer is not None:
                timer.cancel()
        self._slow_reader.end()
        if self._give_back_place is not None:
            self._give_back_place()
            self._give_back_place = None
        super().connection_lost(exc)

    def send_receive_event_to_app(self) -> None:
        self._busy = True
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        self._busy = True
        await super().send(message)

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
        self._slow_reader.begin(self.transport)

    def resume_writing(self) -> None:
        self._slow_reader.end()
        super().resume_writing()

    def _look_for_idle(self) -> None:
        if self._busy:
            self._busy = False
            self._idle_timer = self.loop.call_later(self._idle_s, self._look_for_idle)
        else:
            self._close(GOING_AWAY, "nothing was said here for long; connect again when there is")

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


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f"gateway.trusted_proxies: {error}") from None


def _head_too_large(most: int) -> HeadraceError:
    problem = f"The request's line and headers are more than {most} bytes or {MAX_HEADERS} headers."
    return HeadraceError("head_too_large", problem)
