"""The layer that asks who is there. Pure ASGI; of routes it knows only which are everyone's.

What was opened with a credential that ends, by a revocation or its time, is ended with it: a WebSocket is
told and closed with 4401, an answer under way breaks off.
"""

from __future__ import annotations

import asyncio
import time

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.errors import socket_event
from gateway.api.front import admitted
from gateway.api.guard import refuse
from gateway.auth.door import Door
from gateway.auth.grant import Grant, refused
from gateway.auth.shown import is_of_this_machine
from schemas.errors import HeadraceError

_EVERYONES = ("/", "/healthz", "/readyz")
_ASSETS = "/assets/"
_METRICS = "/metrics"


class Authenticate:
    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_everyones(scope):
            await self._app(scope, receive, send)
            return
        try:
            if scope["path"] == _METRICS:
                raise HeadraceError("forbidden", "Metrics are for this machine; see auth.open_metrics.")
            grant = await self._door.admit(HTTPConnection(scope))
        except HeadraceError as error:
            await refuse(error, scope, receive, send)
            return
        admitted(scope, grant)
        await self._while_it_counts(grant, scope, receive, send)

    def _is_everyones(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if path == _METRICS:
            return self._door.open_metrics or is_of_this_machine(HTTPConnection(scope))
        return scope["type"] == "http" and (path in _EVERYONES or path.startswith(_ASSETS))

    async def _while_it_counts(self, grant: Grant, scope: Scope, receive: Receive, send: Send) -> None:
        until = grant.until_unix_s
        last = _Last(send)

        def show_out() -> None:
            if not limit.expired():  # or its time is up in this moment, too
                limit.reschedule(asyncio.get_running_loop().time())

        try:
            async with asyncio.timeout(until - time.time() if until else None) as limit:
                with self._door.inside(grant, show_out):
                    await self._app(scope, receive, last.send)
        except TimeoutError:
            if not limit.expired():
                raise
            await _show_out(scope, receive, send, last)


class _Last:
    """What was sent last, so that what follows can be said rightly."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.kind = ""

    async def send(self, message: Message) -> None:
        self.kind = message["type"]
        await self._send(message)


async def _show_out(scope: Scope, receive: Receive, send: Send, last: _Last) -> None:
    error = refused("This credential was revoked or has expired.")
    if not last.kind:
        await refuse(error, scope, receive, send)
    elif scope["type"] == "websocket" and last.kind != "websocket.close":
        try:
            await send({"type": "websocket.send", "text": socket_event(error).decode()})
            await send({"type": "websocket.close", "code": error.spec.ws_close, "reason": error.message})
        except (OSError, RuntimeError):
            pass  # it went by itself
