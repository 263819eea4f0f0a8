"""``python -m tests.bench.peers.paced_upstream PORT INTER_TOKEN_MS``: an engine as routers see it, for free.

It answers every POST as chat completions, streamed, with ``max_tokens`` tokens at the given pace; one timer
for all answers. What a router adds is what its clients see beyond this.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from typing import cast

import httptools
import msgspec
import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"cache-control: no-cache\r\n\r\n"
)
_CHUNK = (
    '{"id":"chatcmpl-%d","object":"chat.completion.chunk","created":1,"model":"paced",'
    '"choices":[{"index":0,"delta":%s,"finish_reason":%s}]}'
)
_MODELS = b'{"object":"list","data":[{"id":"paced","object":"model","created":1,"owned_by":"bench"}]}'


class Asked(msgspec.Struct):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def _framed(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


class Answer:
    def __init__(self, number: int, transport: asyncio.Transport, tokens: int) -> None:
        self._transport = transport
        self._left = tokens
        self._delta = _framed(_CHUNK % (number, '{"content":" word"}', "null"))
        self._last = _framed(_CHUNK % (number, "{}", '"length"')) + _framed("[DONE]") + b"0\r\n\r\n"
        transport.write(_HEAD + _framed(_CHUNK % (number, '{"role":"assistant","content":""}', "null")))

    def step(self) -> bool:
        """One token; False: that was the last, or nobody reads."""
        self._left -= 1
        self._transport.write(self._delta if self._left else self._delta + self._last)
        return self._left > 0 and not self._transport.is_closing()


class Connection(asyncio.Protocol):
    def __init__(self, running: list[Answer], numbers: itertools.count[int]) -> None:
        self._running = running
        self._numbers = numbers
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not say that it is one

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"GET":
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self._transport.write(head % len(_MODELS) + _MODELS)
            return
        asked, self._body = msgspec.json.decode(self._body, type=Asked), b""
        tokens = asked.max_completion_tokens or asked.max_tokens or 1
        self._running.append(Answer(next(self._numbers), self._transport, tokens))


async def serve(port: int, inter_token_s: float) -> None:
    loop = asyncio.get_running_loop()
    running: list[Answer] = []
    numbers = itertools.count()
    await loop.create_server(lambda: Connection(running, numbers), "127.0.0.1", port)
    due_s = loop.time()
    while True:
        due_s = max(due_s + inter_token_s, loop.time())
        await asyncio.sleep(due_s - loop.time())
        running[:] = [answer for answer in running if answer.step()]


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]) / 1000))
