"""A TCP cable to a local port that can be cut and mended, and may rewrite what a client sends.

Must not know what runs over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


class Cable:
    """``told_host``: the server is told this Host, whatever the client asked for."""

    def __init__(self, to_port: int, told_host: str | None) -> None:
        self._to_port = to_port
        self._told_host = told_host
        self._server: asyncio.Server | None = None
        self._ends: list[asyncio.StreamWriter] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def mend(self) -> None:
        """Connections are taken, on the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Every connection ends at once, and new ones are refused."""
        if self._server is not None:
            self._server.close()
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self._to_port)
        self._ends += [writer, behind]
        with suppress(ConnectionError):
            await asyncio.gather(_pump(reader, behind, self._told), _pump(behind_reader, writer, _as_it_is))

    def _told(self, data: bytes) -> bytes:
        if self._told_host is None:
            return data
        return data.replace(f"Host: 127.0.0.1:{self.port}".encode(), f"Host: {self._told_host}".encode())


def _as_it_is(data: bytes) -> bytes:
    return data


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
) -> None:
    while data := await reader.read(1 << 16):
        writer.write(change(data))
        await writer.drain()
    writer.close()


@asynccontextmanager
async def cable(to_port: int, *, told_host: str | None = None) -> AsyncIterator[Cable]:
    opened = Cable(to_port, told_host)
    await opened.mend()
    try:
        yield opened
    finally:
        opened.cut()
