"""The outermost layers: who may connect at all, and how many. Pure ASGI; must not know any route.

A page from elsewhere must not reach a gateway through the browser of someone who may: a request whose
Origin is neither this server's own nor listed in ``gateway.allowed_origins`` is refused (WebSockets have no
other protection, CORS does not cover them), and so is, on loopback without authentication, a Host that is
not loopback (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.api.errors import http_answer, socket_event
from gateway.api.front import Front
from gateway.api.sockets import accept
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
                await _refuse(error, scope, receive, send)
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
    """How many."""

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
            return
        try:
            with self._front.connected():
                await self._app(scope, receive, send)
        except HeadraceError as error:
            await _refuse(error, scope, receive, send)


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(error: HeadraceError, scope: Scope, receive: Receive, send: Send) -> None:
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
