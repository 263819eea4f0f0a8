"""The outermost layers: who may connect at all, and how many. Pure ASGI; must not know any route.

A page from elsewhere must not reach a gateway through the browser of someone who may: a request whose
Origin is neither this server's own nor listed in ``gateway.allowed_origins`` is refused (WebSockets have no
other protection, CORS does not cover them), and so is, on loopback without authentication, a Host that is
not loopback (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.api.errors import http_answer, socket_event
from gateway.api.front import Front, caller_of, is_admitted
from gateway.api.sockets import accept
from gateway.auth.shown import address_of, is_loopback_host
from schemas.errors import HeadraceError

_UNCOUNTED = ("/healthz", "/readyz", "/metrics")  # operators get an answer from a gateway that is full
_PUBLIC = "/assets/"  # the page's files: no secret, and behind a wrong proxy the page can say what is wrong
_MAX_REASON_BYTES = 123  # of a close frame, RFC 6455 section 5.5


class Guard:
    """Who."""

    def __init__(self, app: ASGIApp, allowed_origins: Collection[str], *, loopback_only: bool) -> None:
        self._app = app
        self._allowed_origins = allowed_origins
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(Headers(scope=scope), scope["path"])
            except HeadraceError as error:
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        hosts = headers.getlist("host")
        if len(hosts) > 1:  # a proxy in front may have believed another one (RFC 9112 section 3.2)
            raise HeadraceError("forbidden", "Send one Host header.")
        host = hosts[0] if hosts else ""
        if self._loopback_only and not is_loopback(_name(host)):
            raise HeadraceError("forbidden", "This gateway answers on loopback only: use http://127.0.0.1.")
        origin = headers.get("origin")
        if origin is None or path.startswith(_PUBLIC):
            return
        if not self._is_welcome(origin, host):
            raise HeadraceError("forbidden", "Pages of other origins may not use this gateway.")

    def _is_welcome(self, origin: str, host: str) -> bool:
        if origin in self._allowed_origins or "*" in self._allowed_origins:
            return True
        try:
            return urlsplit(origin).netloc == host
        except ValueError:
            return False


class Seats:
    """How many: in all, of one address, of one tenant."""

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front
        self._of_address = SeatCount(front.limits.max_connections_per_address, "address")
        self._of_tenant = SeatCount(front.limits.max_connections_per_tenant, "tenant")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        host = connection.client.host if connection.client is not None else ""
        address = "" if is_loopback_host(host) else address_of(connection)
        tenant = caller_of(connection).tenant if is_admitted(connection) else ""
        try:
            with (
                self._front.connected(),
                self._of_address.seat(address),
                self._of_tenant.seat(tenant),
            ):
                await self._app(scope, receive, send)
        except HeadraceError as error:
            await refuse(error, scope, receive, send)


class SeatCount:
    """Connections of each of a kind; ``most`` 0: any number. Those whose name is empty are not counted."""

    def __init__(self, most: int, kind: str) -> None:
        self._most = most
        self._kind = kind
        self._taken: Counter[str] = Counter()

    @contextmanager
    def seat(self, name: str) -> Iterator[None]:
        """Raises ``too_many_connections``."""
        if not self._most or not name:
            yield
            return
        if self._taken[name] >= self._most:
            problem = f"Your {self._kind} has {self._most} connections here, which is all it may have."
            raise HeadraceError("too_many_connections", problem)
        self._taken[name] += 1
        try:
            yield
        finally:
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=1024)
def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def refuse(error: HeadraceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Over HTTP by status. A WebSocket is accepted, told, and closed with the code of the table: of a
    handshake that fails, browsers show a page nothing at all."""
    if scope["type"] == "http":
        await http_answer(error)(scope, receive, send)
        return
    assert error.spec.ws_close is not None, error.code
    websocket = WebSocket(scope, receive, send)
    try:
        await accept(websocket)
        await websocket.send_text(socket_event(error).decode())
        await websocket.close(error.spec.ws_close, error.message.encode()[:_MAX_REASON_BYTES].decode())
    except (WebSocketDisconnect, RuntimeError):
        pass  # it did not wait to be told
