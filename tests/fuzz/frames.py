"""WebSocket frames, right and wrong (RFC 6455 section 5), and a connection that sends any bytes at all.

The client's half that no library gives: it must be able to break every rule.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
LIMIT_S = 30.0


def frame(
    payload: bytes,
    opcode: int = TEXT,
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """``length``: what the frame says of itself, where that is not true. The mask is zero: servers must
    apply it all the same, and the bytes stay readable."""
    said = len(payload) if length is None else length
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    mask = 0x80 if masked else 0
    if said < 126:
        head = struct.pack("!BB", first, mask | said)
    elif said < 1 << 16:
        head = struct.pack("!BBH", first, mask | 126, said)
    else:
        head = struct.pack("!BBQ", first, mask | 127, said)
    return head + (b"\0\0\0\0" if masked else b"") + payload


@dataclass(frozen=True)
class Frame:
    opcode: int
    payload: bytes


class Closed(Exception):
    """The server ended the connection. ``code``: of its close frame, if it sent one."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class RawSocket:
    """After ``open`` whatever is sent goes out as it is; ``receive`` reads the server's frames. Not a pair of
    streams: those forget what was received as soon as sending fails, and with it the reason of the end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    @classmethod
    async def connect(cls, url: str) -> RawSocket:
        parts = urlsplit(url)
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
        return cls(connection)

    @classmethod
    async def open(cls, url: str, path: str) -> RawSocket:
        """With the WebSocket handshake done."""
        opened = await cls.connect(url)
        await opened.send(handshake(urlsplit(url).netloc, path))
        while b"\r\n\r\n" not in opened._received:
            await opened._receive_more()
        answer, opened._received = opened._received.split(b"\r\n\r\n", 1)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        return opened

    async def send(self, data: bytes) -> None:
        """What the server no longer wants to read is lost; its reason is there to be received."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            await asyncio.wait_for(loop.sock_sendall(self._connection, data), LIMIT_S)

    async def receive(self) -> Frame:
        """The next frame that is not a close. Raises ``Closed``."""
        first, second = await self._read(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self._read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self._read(8))
        payload = await self._read(length)
        if first & 0x0F == CLOSE:
            raise Closed(struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005)
        return Frame(first & 0x0F, payload)

    async def read_all(self) -> bytes:
        """Until the server ends the connection."""
        with contextlib.suppress(Closed):
            while True:
                await self._receive_more()
        return self._received

    async def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            await self._receive_more()
        read, self._received = self._received[:size], self._received[size:]
        return read

    async def _receive_more(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            more = await asyncio.wait_for(loop.sock_recv(self._connection, 1 << 16), LIMIT_S)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            more = b""
        if not more:
            raise Closed(None)
        self._received += more

    def half_close(self) -> None:
        """Nothing more comes from here."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Gone at once, with RST."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()

    def close(self) -> None:
        self._connection.close()


def handshake(host: str, path: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()
