"""``python -m tests.bench.idle``: one gateway process with thousands of WebSockets that say nothing.

Prints what a connection costs in memory and CPU, how fast connections are accepted, and the gaps between the
tokens of some streams with and without them. ``--json`` writes the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import resource
import sys
import tempfile
import time
from contextlib import AsyncExitStack, aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from gateway.client import Client
from tests.bench.costs import cpu_s, rss_bytes
from tests.bench.layout import gateway, servers, sim_worker
from tests.bench.program import carry_out
from tests.chaos.failover import percentiles

AT_ONCE = 200  # handshakes under way
REST_S = 12.0  # longer than a ping interval: what idling costs, pings and all
_PING, _PONG = 0x89, 0x8A


def main() -> int:
    args = _arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return carry_out(_run(args), _print, args)


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with AsyncExitStack() as stack:
            nats, redis = await servers(stack, Path(folder))
            sim = {"slots": args.streams, "inter_token_ms": args.inter_token_ms, "mean_output_tokens": 0}
            await sim_worker(stack, Path(folder), nats, sim)
            process, port = await gateway(stack, Path(folder), nats.url, redis.url)
            await _gaps(port, args)  # warm
            alone = await _gaps(port, args)
            rss = rss_bytes(process.pid)
            idle, seconds = await _connect(port, args.connections)
            grown = rss_bytes(process.pid) - rss
            resting_s = await _cpu_s_while_resting(process.pid)
            among = await _gaps(port, args)
            lost = sum(each.lost for each in idle)
            for each in idle:
                each.close()
    return {
        "connections": len(idle),
        "lost": lost,
        "kib_each": round(grown / len(idle) / 1024, 1),
        "accepted_per_s": round(len(idle) / seconds),
        "idle_cpu_percent": round(100 * resting_s / REST_S, 1),
        "gap_ms_alone": percentiles(alone),
        "gap_ms_among_them": percentiles(among),
    }


async def _connect(port: int, count: int) -> tuple[list[_Idle], float]:
    """All of them, and how long it took in seconds."""
    loop = asyncio.get_running_loop()
    under_way = asyncio.Semaphore(AT_ONCE)

    async def one() -> _Idle:
        async with under_way:
            _, idle = await loop.create_connection(lambda: _Idle(port), "127.0.0.1", port)
            await idle.accepted
            return idle

    begun_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        opening = [tasks.create_task(one(), name="open") for _ in range(count)]
    return [task.result() for task in opening], time.perf_counter() - begun_s


class _Idle(asyncio.Protocol):
    """A WebSocket that only answers pings (RFC 6455), by hand: thousands must fit beside the gateway."""

    def __init__(self, port: int) -> None:
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self._port = port
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        if not self.accepted.done():
            if b" 101 " not in data[:20]:
                self.accepted.set_exception(ConnectionError(data[:80].decode(errors="replace")))
                return
            self.accepted.set_result(None)
            data = data.partition(b"\r\n\r\n")[2]
        while len(data) >= 2:  # pings are whole: they are smaller than any segment
            size = data[1] & 0x7F
            if data[0] == _PING:  # the mask is zero, which leaves the payload as it is
                self._transport.write(bytes((_PONG, 0x80 | size)) + bytes(4) + data[2 : 2 + size])
            data = data[2 + size :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = not self._closed
        if not self.accepted.done():
            self.accepted.set_exception(exc or ConnectionError("closed in the handshake"))

    def close(self) -> None:
        self._closed = True
        self._transport.abort()


async def _gaps(port: int, args: argparse.Namespace) -> list[float]:
    """Milliseconds between the pieces of text of some streams at once."""
    gaps: list[float] = []

    async def one(client: Client, number: int) -> None:
        at_ms: list[float] = []
        stream = client.stream(input=f"question {number}", max_output_tokens=args.tokens, ignore_eos=True)
        async with aclosing(stream) as events:
            async for event in events:
                if event["type"] == "response.output_text.delta":
                    at_ms.append(time.perf_counter() * 1000)
        gaps.extend(after - before for before, after in pairwise(at_ms))

    async with Client([f"http://127.0.0.1:{port}"]) as client, asyncio.TaskGroup() as tasks:
        for number in range(args.streams):
            tasks.create_task(one(client, number), name=f"stream {number}")
    return gaps


async def _cpu_s_while_resting(pid: int) -> float:
    before = cpu_s(pid)
    await asyncio.sleep(REST_S)
    return cpu_s(pid) - before


def _print(figures: dict[str, Any], console: Console) -> None:
    table = Table("idle WebSockets", "KiB each", "accepted a second", "gateway CPU while idle", "lost")
    table.add_row(
        str(figures["connections"]),
        str(figures["kib_each"]),
        str(figures["accepted_per_s"]),
        f"{figures['idle_cpu_percent']} %",
        str(figures["lost"]),
    )
    console.print(table)
    gaps = Table("streams", "p50", "p95", "p99", "max", title="milliseconds between tokens")
    gaps.add_row("alone", *map(str, figures["gap_ms_alone"].values()))
    gaps.add_row("among the idle", *map(str, figures["gap_ms_among_them"].values()))
    console.print(gaps)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.idle", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--inter-token-ms", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
