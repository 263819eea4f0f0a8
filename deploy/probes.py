"""Asks a part whether it is ready, in the fewest bytes its protocol allows. Not answering is a no."""

from __future__ import annotations

import asyncio
import ssl

_ANSWER_S = 2.0


async def nats_ready(host: str, port: int) -> bool:
    """The server speaks first, and only once JetStream has recovered its streams."""
    return (await _first_line(host, port, b"")).startswith(b"INFO ")


async def redis_ready(host: str, port: int) -> bool:
    return (await _first_line(host, port, b"PING\r\n")).startswith(b"+PONG")  # or -LOADING


async def http_ready(host: str, port: int, path: str, *, tls: bool = False) -> bool:
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    status = (await _first_line(host, port, request.encode(), tls=tls)).split(b" ")
    return len(status) > 1 and status[1] == b"200"


async def _first_line(host: str, port: int, request: bytes, *, tls: bool = False) -> bytes:
    """Empty when nothing came. A certificate is for the name that clients use: it is not checked here."""
    context = ssl.create_default_context() if tls else None
    if context is not None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                writer.write(request)
                return await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):  # ValueError: a line without end
        return b""
