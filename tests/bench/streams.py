"""Keeps so many responses streaming from one gateway, and times each: the load of other benchmarks, as a
process of its own (``asking`` starts it). A new response begins where one ended; each stream has a
connection.

Cheap, because it shares two cores with what it measures: of each event only the beginning is looked at,
and nothing is decoded but the terminal (0.7 us an event; ``client_cpu_percent`` says what it came to).
Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any, cast

import uvloop

DELTA = b'"response.output_text.delta"'
TERMINALS = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"', b'"error"')
BEGINNING = 48  # bytes of an event within which its type stands
TEXT, PING, PONG = 1, 9, 10


class Stream(asyncio.Protocol):
    """One connection, and one response after the other on it. Times are seconds, wall clock."""

    def __init__(self, load: Load, number: int) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load = load
        self._number = number
        self._asked = 0
        self._begun_s = 0.0
        self._first_s = 0.0
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(exc or ConnectionError("the gateway closed the connection"))

    def open(self) -> None:
        raise NotImplementedError

    def send(self, body: bytes) -> None:
        raise NotImplementedError

    def ask(self) -> None:
        load = self._load
        if time.time() >= load.until_s:
            self.over.set_result(None)
            self._transport.abort()
            return
        self._asked += 1
        question = {"input": f"stream {self._number}, question {self._asked}", **load.body}
        self._first_s = 0.0
        self._begun_s = time.time()
        self.send(json.dumps(question).encode())

    def first(self) -> None:
        if not self._first_s:
            self._first_s = time.time()

    def ended(self, event: bytes) -> None:
        told = json.loads(event)
        if told["type"] in ("error", "response.failed"):
            self.over.set_exception(RuntimeError(event.decode()))
            self._transport.abort()
            return
        response = told["response"]
        self._load.answers.append(
            {
                "id": response["id"],
                "begun_s": self._begun_s,
                "first_s": self._first_s,
                "ended_s": time.time(),
                "tokens": response["usage"]["output_tokens"],
                "timings": response["timings"],
            }
        )
        self.ask()


class WebSocketStream(Stream):
    """RFC 6455 by hand."""

    def open(self) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET /v1/responses HTTP/1.1\r\nHost: {self._load.host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._upgraded = False

    def send(self, body: bytes) -> None:
        self._transport.write(self._frame(TEXT, b'{"type":"response.create",' + body[1:]))

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        """Masked with zeros, which leaves the payload as it is."""
        size = len(payload)
        head = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        return bytes((0x80 | opcode,)) + head + bytes(4) + payload

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at, size = 0, len(data)
        if not self._upgraded:
            at = data.find(b"\r\n\r\n") + 4
            if b" 101 " not in data[:20] or at < 4:
                raise ConnectionError(data[:200].decode(errors="replace"))
            self._upgraded = True
            self.ask()
        while at + 2 <= size:
            length, begin = data[at + 1], at + 2
            if length >= 126:
                begin += 2 if length == 126 else 8
                length = int.from_bytes(data[at + 2 : begin], "big")
            end = begin + length
            if end > size:
                break
            opcode = data[at] & 0x0F
            at = end
            if opcode == TEXT:
                if data.find(DELTA, begin, begin + BEGINNING) >= 0:
                    self.first()
                elif any(data.find(kind, begin, begin + BEGINNING) >= 0 for kind in TERMINALS):
                    self.ended(data[begin:end])
            elif opcode == PING:
                self._transport.write(self._frame(PONG, data[begin:end]))
        self._rest = data[at:]


class SseStream(Stream):
    """HTTP/1.1 with keep-alive; the body is searched, not parsed, but for the last event."""

    def open(self) -> None:
        self.ask()

    def send(self, body: bytes) -> None:
        self._tail = b""
        body = b'{"stream":true,' + body[1:]
        self._transport.write(
            f"POST /v1/responses HTTP/1.1\r\nHost: {self._load.host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def data_received(self, data: bytes) -> None:
        if not self._first_s:
            self._rest += data
            if not self._rest.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(self._rest[:300].decode(errors="replace"))
            if b"event: response.output_text.delta" not in self._rest:
                return
            self.first()
            data, self._rest = self._rest, b""
        self._tail = (self._tail + data) if self._tail else data
        at = self._tail.find(b"event: response.completed")
        if at < 0:
            at = self._tail.find(b"event: response.incomplete")
        if at < 0:
            self._tail = self._tail[-32:]
        elif self._tail.endswith(b"\r\n0\r\n\r\n"):
            event = self._tail[self._tail.index(b"data: ", at) + 6 :]
            self._tail = b""
            self.ended(event[: event.index(b"\n\n")])


class Load:
    def __init__(self, args: argparse.Namespace) -> None:
        self.host = f"127.0.0.1:{args.port}"
        self.body: dict[str, Any] = {
            "max_output_tokens": args.tokens,
            "ignore_eos": True,
            **json.loads(args.body),
        }
        self.until_s = 0.0
        self.answers: list[dict[str, Any]] = []

    async def run(self, args: argparse.Namespace) -> dict[str, Any]:
        """Streams begin one after the other over ``spread_s``, so that they do not end all at once."""
        loop = asyncio.get_running_loop()
        kind = {"ws": WebSocketStream, "sse": SseStream}[args.transport]
        self.until_s = time.time() + args.seconds
        streams: list[Stream] = []
        begun_s = loop.time()
        for number in range(args.streams):
            await asyncio.sleep(begun_s + args.spread_s * number / args.streams - loop.time())
            _, stream = await loop.create_connection(lambda n=number: kind(self, n), "127.0.0.1", args.port)
            streams.append(stream)
        await asyncio.gather(*(stream.over for stream in streams))
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_percent = 100 * (used.ru_utime + used.ru_stime) / (loop.time() - begun_s)
        return {"client_cpu_percent": round(cpu_percent, 1), "answers": self.answers}


async def asking(
    port: int,
    transport: str,
    *,
    streams: int,
    tokens: int,
    seconds: float,
    spread_s: float,
    body: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """What ``Load.run`` tells, from a process of its own. ``body``: more of the request."""
    settings = {"streams": streams, "tokens": tokens, "seconds": seconds, "spread-s": spread_s}
    command = [
        sys.executable,
        "-m",
        "tests.bench.streams",
        str(port),
        transport,
        "--body",
        json.dumps(body or {}),
    ]
    command += [f"--{name}={value}" for name, value in settings.items()]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the load ended with {process.returncode}")
    told: dict[str, Any] = json.loads(out)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streams", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("transport", choices=["ws", "sse"])
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=100, help="of each answer")
    parser.add_argument("--seconds", type=float, default=5.0, help="after which no response begins any more")
    parser.add_argument("--spread-s", type=float, default=0.0)
    parser.add_argument("--body", default="{}", help="JSON: more of each request")
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(Load(args).run(args))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
