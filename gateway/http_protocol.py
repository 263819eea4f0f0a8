"""uvicorn's HTTP with the bounds that it lacks. Must not know any route.

uvicorn 0.54 has no limit for a request's line and headers (nor has llhttp), none for the time that they or a
body take, none for a chunked body's trailers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.api.errors import http_answer
from gateway.connection_limits import OpenConnections, SlowReader
from gateway.held import HeldHead
from gateway.outlet import Body, HasOutlet, Outlet
from gateway.round_trip import MeasuredHttp
from gateway.websocket_protocol import BoundedWebSocket
from schemas.config import Gateway
from schemas.errors import HeadraceError

MAX_HEADERS = 128


def http_protocol(limits: Gateway) -> type[asyncio.Protocol]:
    """For one server's ``uvicorn.Config(http=…)``."""
    open_connections = OpenConnections(limits)

    class Http(BoundedHttp):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(limits, open_connections, *args, **kwargs)

    return Http


class BoundedHttp(MeasuredHttp, HasOutlet):
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
        self._slow_reader: SlowReader | None = None  # while it is one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", HeldHead(transport))
        self._place = self._open.take(self.client[0] if self.client else "")
        if self._place is None:
            transport.abort()
        else:
            self._wait(self._limits.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._slow_reader is not None:
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
        self.transport = cast("HeldHead", self.transport).transport
        place, self._place = self._place, None  # goes on to the WebSocket: it is the same connection
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if isinstance(protocol, BoundedWebSocket) and place is not None:
            protocol.keep_place(self._open, place)
        self.parser = None  # type: ignore[assignment]  # it and we hold each other, until a garbage collection

    # -- what goes ------------------------------------------------------------------------------------

    def outlet(self, scope: Mapping[str, Any]) -> Outlet | None:
        """None for a request before another that is here already."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.scope.get("state") is not scope["state"]:
            return None
        return Body(cycle, self.flow)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_reader = SlowReader(self._limits.slow_reader_s, self.transport.abort)
        self._slow_reader.begin(self.transport)

    def resume_writing(self) -> None:
        if self._slow_reader is not None:
            self._slow_reader.end()
            self._slow_reader = None
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


def _head_too_large(most: int) -> HeadraceError:
    problem = f"The request's line and headers are more than {most} bytes or {MAX_HEADERS} headers."
    return HeadraceError("head_too_large", problem)
