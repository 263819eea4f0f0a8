"""What every API surface stands on: the pipeline, the limits, who is connected, and the way out.

Must not know any API's JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection
from starlette.types import Scope

from broker.metrics import CONNECTIONS
from gateway.api.token_logprobs import Spellings
from gateway.auth.grant import Grant
from gateway.caller import LOCAL, Caller
from gateway.live import Live
from gateway.live_reader import LiveReader
from gateway.pipeline import Pipeline
from gateway.siblings import Place
from gateway.tick import Tick
from schemas.config import Gateway
from schemas.errors import HeadraceError

if TYPE_CHECKING:
    from gateway.api.sockets import Socket

_CALLER, _GRANT = "headrace.caller", "headrace.grant"  # in the ASGI scope


class Front:
    """``connections`` is bounded by ``gateway.max_connections``; beyond, a client is told to come back."""

    def __init__(self, pipeline: Pipeline, limits: Gateway, place: Place | None = None) -> None:
        self.pipeline = pipeline
        self.limits = limits
        self.place = place  # None: no other process has this port
        self.sockets: set[Socket] = set()
        self.connections = 0
        self.spellings = Spellings()
        self.tick = Tick()
        self._readers: set[LiveReader] = set()
        self._serving = 0  # requests that have an answer to finish
        self._idle = asyncio.Event()
        self._idle.set()
        self._gone_at_s: float | None = None  # by the loop's clock: when a drain ends at the latest
        self._gone = False

    @property
    def draining(self) -> bool:
        return self._gone_at_s is not None

    @contextmanager
    def connected(self) -> Iterator[None]:
        """One HTTP request or WebSocket. Raises ``too_many_connections``."""
        if self.connections >= self.limits.max_connections:
            raise HeadraceError(
                "too_many_connections", "This gateway has all the clients it takes; come back."
            )
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1

    @contextmanager
    def attending(self, socket: Socket) -> Iterator[None]:
        """Around a WebSocket's session, so that a drain can tell it to go, begun before or after it."""
        self.sockets.add(socket)
        self._tell(socket)
        CONNECTIONS.set(len(self.sockets))
        try:
            yield
        finally:
            self.sockets.discard(socket)
            CONNECTIONS.set(len(self.sockets))

    @contextmanager
    def answering(self, *, new: bool = True) -> Iterator[None]:
        """Around each answer, so that a drain waits until it is written. Raises ``going_away`` for a new
        one; what was accepted before a drain began is answered."""
        if new and self.draining:
            raise _going()
        self._serving += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._serving -= 1
            if self._serving == 0:
                self._idle.set()

    def reader(self, live: Live, from_token: int = 0) -> LiveReader:
        """For an answer over HTTP, until ``leave``. When a drain's time is up it ends with going_away: the
        response goes on in the queue, and its client may ask for it elsewhere."""
        reader = live.reader(from_token)
        self._readers.add(reader)
        if self._gone:
            reader.lose(_going())
        return reader

    def leave(self, reader: LiveReader) -> None:
        self._readers.discard(reader)
        reader.close()

    def ready(self) -> tuple[bool, str]:
        return (False, "shutting down") if self.draining else self.pipeline.ready()

    async def drain(self) -> None:
        """Tell everyone, refuse new work, wait ``gateway.drain_s`` at most for the answers under way,
        and close the sockets in a way that invites a reconnect."""
        limit_s = self.limits.drain_s
        self._gone_at_s = asyncio.get_running_loop().time() + limit_s
        for socket in self.sockets:
            self._tell(socket)
        with suppress(TimeoutError):  # what is left then goes on in the queue; its clients may resume
            async with asyncio.timeout(limit_s):
                await self.pipeline.drain()
                await self._idle.wait()
        self._gone = True
        for reader in self._readers:
            reader.lose(_going())
        for socket in self.sockets:
            self._tell(socket)
        await asyncio.sleep(0)  # they say goodbye in their tasks, before the server hangs up on the others

    def _tell(self, socket: Socket) -> None:
        if self._gone_at_s is not None:
            left_s = max(0.0, self._gone_at_s - asyncio.get_running_loop().time())
            socket.going_away(time_left_ms=round(left_s * 1000))
        if self._gone:
            socket.hang_up()


def admitted(scope: Scope, grant: Grant) -> None:
    """By the layer that authenticates."""
    scope[_GRANT], scope[_CALLER] = grant, grant.caller


def is_admitted(connection: HTTPConnection) -> bool:
    return _GRANT in connection.scope


def grant_of(connection: HTTPConnection) -> Grant:
    """Of a request that was let in with one: where nobody is authenticated there is none."""
    grant = connection.scope[_GRANT]
    assert isinstance(grant, Grant)
    return grant


def _going() -> HeadraceError:
    return HeadraceError("going_away", "This gateway is shutting down; connect again.")


def caller_of(connection: HTTPConnection) -> Caller:
    """Whom the outer layers have found to be asking."""
    caller = connection.scope.get(_CALLER, LOCAL)
    assert isinstance(caller, Caller)
    return caller
