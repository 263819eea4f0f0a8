"""``python -m tests.bench.readers PORT …``: clients that cost as little as clients can: raw bytes, and of
what comes only when, and how many events. One stream a connection. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
import time
from typing import cast

import uvloop

from tests.chaos.failover import percentiles

DELTA = b'"type":"response.output_text.delta"'
CHAT_DELTA = b'"delta":{'
ENDS = (b'"type":"response.incomplete"', b'"type":"response.completed"', b"[DONE]")
FAILS = (b'"type":"error"', b'"type":"response.failed"', b'"error":{"')
LONGEST = 64  # of what is looked for
AT_ONCE = 64


class Reader(asyncio.Protocol):
    """``gaps_ms``: between reads that brought text."""

    def __init__(self, request: bytes, greeting: bytes, delta: bytes) -> None:
        self._request = request
        self._greeting = greeting  # sent when the first bytes are here (a WebSocket is open)
        self._delta = delta
        self._rest = b""
        self._at_s = 0.0
        self.sent_s = 0.0
        self.first_s = 0.0
        self.events = 0
        self.gaps_ms: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.sent_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._greeting:
            self._greeting, greeting = b"", self._greeting
            self.sent_s = time.perf_counter()
            self._transport.write(greeting)
        window = self._rest + data
        self._rest = window[-LONGEST:]
        count = window.count(self._delta) - self._seen_before(window, data)
        if count:
            now_s = time.perf_counter()
            if self._at_s:
                self.gaps_ms.append((now_s - self._at_s) * 1000)
            else:
                self.first_s = now_s
            self._at_s = now_s
            self.events += count
        elif any(word in window for word in FAILS) and not self.done.done():
            self.done.set_exception(RuntimeError(window[:300].decode(errors="replace")))
        if any(word in window for word in ENDS) and not self.done.done():
            self.done.set_result(None)

    def _seen_before(self, window: bytes, data: bytes) -> int:
        return window[: len(window) - len(data)].count(self._delta)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("closed"))

    def close(self) -> None:
        self._transport.abort()


def websocket(port: int, body: dict[str, object]) -> tuple[bytes, bytes]:
    key = base64.b64encode(os.urandom(16)).decode()
    head = (
        f"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    text = json.dumps({"type": "response.create", **body}).encode()
    size = (
        bytes((0x80 | 126,)) + len(text).to_bytes(2, "big") if len(text) > 125 else bytes((0x80 | len(text),))
    )
    return head.encode(), b"\x81" + size + bytes(4) + text  # the mask is zero


def http(port: int, path: str, body: dict[str, object]) -> bytes:
    text = json.dumps({**body, "stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text


def make(surface: str, port: int, tokens: int, number: int) -> Reader:
    asked = f"question {number}"
    if surface == "ws":
        body = {"input": asked, "max_output_tokens": tokens, "ignore_eos": True}
        return Reader(*websocket(port, body), DELTA)
    if surface == "sse":
        body = {"input": asked, "max_output_tokens": tokens, "ignore_eos": True}
        return Reader(http(port, "/v1/responses", body), b"", DELTA)
    messages = [{"role": "user", "content": asked}]
    chat = {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "model": "bench"}
    return Reader(http(port, "/v1/chat/completions", chat), b"", CHAT_DELTA)


async def read_all(surface: str, port: int, streams: int, tokens: int) -> list[Reader]:
    under_way = asyncio.Semaphore(AT_ONCE)
    loop = asyncio.get_running_loop()

    async def one(number: int) -> Reader:
        async with under_way:
            _, reader = await loop.create_connection(
                lambda: make(surface, port, tokens, number), "127.0.0.1", port
            )
        await reader.done
        return reader

    async with asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(one(number), name=f"stream {number}") for number in range(streams)]
    readers = [task.result() for task in reading]
    for reader in readers:
        reader.close()
    return readers


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.readers", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--surface", choices=("ws", "sse", "chat"), default="ws")
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=500)
    args = parser.parse_args()
    readers = await read_all(args.surface, args.port, args.streams, args.tokens)
    gaps = [gap for reader in readers for gap in reader.gaps_ms]
    times = os.times()
    figures = {
        "events": sum(reader.events for reader in readers),
        "tokens": args.streams * args.tokens,
        "ttft_ms": percentiles([(reader.first_s - reader.sent_s) * 1000 for reader in readers]),
        "itl_ms": percentiles(gaps) if gaps else {},
        "cpu_s": times.user + times.system,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    uvloop.run(main())
    sys.exit(0)
