"""A TCP relay that makes its server far away: each byte takes ``delay_s`` to arrive, in both directions, and
a connection costs the round trip of its handshake before anything is sent. Bandwidth is not limited.

(The kernel's netem would do the same; it is not everywhere.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast


@asynccontextmanager
async def far_link(to_port: int, delay_s: float) -> AsyncIterator[int]:
    """The port under which the server on ``to_port`` of this machine is that far away."""
    loop = asyncio.get_running_loop()
    ends: set[_End] = set()
    server = await loop.create_server(lambda: _Near(to_port, delay_s, ends), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for end in list(ends):
            end.abort()


class _End(asyncio.Protocol):
    """One side's connection. What it reads is written to ``peer`` when it has travelled; None: it closes."""

    def __init__(self, delay_s: float, ends: set[_End]) -> None:
        self.peer: _End | None = None
        self._ends = ends
        self._delay_s = delay_s
        self._transport: asyncio.Transport | None = None
        self._arriving: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.Handle | None = None
        self._open_at_s = 0.0  # when the handshake is over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._ends.add(self)

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ends.discard(self)
        self._send(None)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send(self, data: bytes | None) -> None:
        now_s = asyncio.get_running_loop().time()
        self._arriving.append((max(now_s, self._open_at_s) + self._delay_s, data))
        self._wake()

    def _wake(self) -> None:
        if self._timer is None and self.peer is not None and self._arriving:
            self._timer = asyncio.get_running_loop().call_at(self._arriving[0][0], self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        assert self.peer is not None
        out = self.peer._transport
        while self._arriving and self._arriving[0][0] <= now_s:
            data = self._arriving.popleft()[1]
            if out is None or out.is_closing():
                continue
            if data is None:
                out.close()
            else:
                out.write(data)
        self._wake()


class _Near(_End):
    """The client's side: it makes the other."""

    def __init__(self, to_port: int, delay_s: float, ends: set[_End]) -> None:
        super().__init__(delay_s, ends)
        self._to_port = to_port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._open_at_s = loop.time() + 2 * self._delay_s
        self._dial = loop.create_task(self._connect(), name="far-link-dial")

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        far = _End(self._delay_s, self._ends)
        try:
            await loop.create_connection(lambda: far, "127.0.0.1", self._to_port)
        except OSError:
            self.abort()
            return
        self.peer, far.peer = far, self
        # A server that speaks first, as NATS does, is heard when the handshake is over.
        far._open_at_s = self._open_at_s - self._delay_s
        self._wake()
        far._wake()
