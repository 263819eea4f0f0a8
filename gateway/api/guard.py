"""The outermost layer: who may connect at all, and how many. Pure ASGI; must not know any route.

A page from elsewhere must not reach a gateway through the browser of someone who may: a request whose
Origin is not this server's own is refused (WebSockets have no other protection, CORS does not cover
them), and so is, on loopback without authentication, a Host that is not loopback (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from gateway.api.errors import http_answer
from gateway.api.front import Front
from schemas.errors import HeadraceError

_UNCOUNTED = ("/healthz", "/readyz", "/metrics")  # operators get an answer from a gateway that is full


class Guard:
    def __init__(self, app: ASGIApp, front: Front, *, loopback_only: bool) -> None:
        self._app = app
        self._front = front
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(scope=scope))
            if scope["path"] in _UNCOUNTED:
                await self._app(scope, receive, send)
                return
            with self._front.connected():
                await self._app(scope, receive, send)
        except HeadraceError as error:
            await _refuse(error, scope, receive, send)

    def _check(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._loopback_only and not is_loopback(_name(host)):
            raise HeadraceError("forbidden", "This gateway answers on loopback only: use http://127.0.0.1.")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise HeadraceError("forbidden", "Pages of other origins may not use this gateway.")


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
    """Over HTTP, and in a WebSocket's handshake, by status; a full gateway accepts the WebSocket and
    closes it with 1013, because browsers and the SDK see only close codes."""
    answer = http_answer(error)
    if scope["type"] == "http":
        await answer(scope, receive, send)
        return
    websocket = WebSocket(scope, receive, send)
    if error.spec.ws_close == 1013:
        await websocket.accept()
        await websocket.close(error.spec.ws_close, error.code)
    else:
        await websocket.send_denial_response(answer)
