"""A TCP relay in front of nats-server, one for each of our processes, that can misbehave as networks do.

Cut: connections are reset and new ones too. Blackholed: bytes are held back and nothing is closed. Healed:
what was held back arrives. Must not know what travels through it.
"""

from __future__ import annotations

import asyncio
from typing import Literal, cast

State = Literal["open", "cut", "blackholed"]


class Proxy:
    """``port``: where it listens, on loopback, once started."""

    def __init__(self, upstream_port: int) -> None:
        self.port = 0
        self._upstream_port = upstream_port
        self._state: State = "open"
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Near(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Bytes on the way, also those that a blackhole held back, are lost."""
        self._state = "cut"
        for link in list(self._links):
            link.reset()

    def blackhole(self) -> None:
        self._state = "blackholed"
        for link in self._links:
            link.hold()

    def heal(self) -> None:
        self._state = "open"
        for link in list(self._links):
            link.release()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        dials = [link.dial for link in self._links if link.dial is not None]
        if dials:
            await asyncio.wait(dials)

    def _accepted(self, near: _Near) -> None:
        link = _Link(self, near)
        near.link = link
        if self._state == "cut":
            link.reset()
            return
        self._links.add(link)
        if self._state == "blackholed":
            link.hold()
        else:
            link.release()

    def _left(self, link: _Link) -> None:
        self._links.discard(link)


class _Link:
    """A client's connection and ours to the server. ``dial``: the task that makes the latter."""

    def __init__(self, proxy: Proxy, near: _Near) -> None:
        self.dial: asyncio.Task[None] | None = None
        self._proxy = proxy
        self._halves: list[_Half] = [near]
        self._held = False
        near.pause()

    def hold(self) -> None:
        self._held = True
        for half in self._halves:
            half.pause()

    def release(self) -> None:
        self._held = False
        if len(self._halves) == 2:
            for half in self._halves:
                half.resume()
        elif self.dial is None:
            self.dial = asyncio.get_running_loop().create_task(self._connect(), name="proxy-dial")

    def reset(self) -> None:
        for half in self._halves:
            half.abort()
        self._proxy._left(self)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, far = await loop.create_connection(_Half, "127.0.0.1", self._proxy._upstream_port)
        except OSError:  # the server is down: so is this link
            self.reset()
            return
        near = self._halves[0]
        if near.gone:
            far.abort()
            return
        self._halves.append(far)
        far.link, far.peer, near.peer = self, near, far
        if self._held:
            self.hold()
        else:
            self.release()


class _Half(asyncio.Protocol):
    """One connection. What it reads, its peer writes; a peer that lags stops its reading."""

    def __init__(self) -> None:
        self.link: _Link | None = None
        self.peer: _Half | None = None
        self.gone = False
        self._transport: asyncio.Transport | None = None
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer._transport is not None:
            self.peer._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if self.link is not None:
            self.link.reset()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.pause()

    def resume_writing(self) -> None:
        if self.peer is not None and self.link is not None and not self.link._held:
            self.peer.resume()

    def pause(self) -> None:
        if self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Near(_Half):
    """A client's side, which makes the link."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self._proxy = proxy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy._accepted(self)
