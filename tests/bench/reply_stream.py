"""``python -m tests.bench.reply_stream``: a REPLIES stream with very many logs in it, and one at its limit.

Fills the stream with the logs of ended responses (two subjects each) and asks, at each size: what it costs
nats-server in memory and file; how long it takes to read a log by the response's id alone, to resume a
response at a gateway that never heard of it, to store a message, to look at the stream; how long a gateway
and a killed nats-server need to be there again. Then the limit is drawn round what the stream holds, so that
each message that comes pushes out the oldest: what that costs, and whether it is still exact.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from broker import jetstream, subjects, topology
from broker.connection import Broker
from broker.history import read_stored
from broker.jetstream import MSG_ID, ApiError
from broker.retention import retention
from schemas import codec
from schemas.errors import HeadraceError
from schemas.ids import Fence, GatewayId, ResponseId, SessionToken, WorkerId, new_process_id, new_response_id
from schemas.reply import Finished, Started, Timings, Tokens, Usage
from tests.bench.costs import cpu_s, rss_bytes
from tests.bench.layout import gateway, servers, sim_worker
from tests.bench.program import carry_out
from tests.bench.streams import asking
from tests.chaos.failover import percentiles
from tests.integration.conftest import NatsServer, RedisServer

TOKENS = 32  # of each log, in as many messages as asked for
CHUNK = 2000  # messages published before one of them is waited for
PROBES = 200
RESUMED = 40
RESTART_LIMIT_S = 60.0
SESSION = SessionToken("s" * 22)


def main() -> int:
    args = _arguments()
    return carry_out(_run(args), _print, args)


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        async with AsyncExitStack() as stack:
            nats, redis = await servers(stack, Path(name))
            broker = await Broker.connect(nats.config, name="bench")
            stack.push_async_callback(broker.close)
            await topology.apply(broker)
            bench = _Bench(nats, redis, broker, Path(name), args.messages)
            await bench.ask_some(stack)
            for size in args.subjects:
                filled = await bench.fill(size)
                figures[f"{size} subjects"] = {**filled, **await bench.look()}
            figures["at its limit"] = {**await bench.squeeze(args.pushed), **await bench.look(started=False)}
    return figures


class _Bench:
    def __init__(
        self, nats: NatsServer, redis: RedisServer, broker: Broker, folder: Path, messages: int
    ) -> None:
        self._nats = nats
        self._redis = redis
        self._broker = broker
        self._folder = folder
        self._messages = messages
        self._owner = GatewayId(new_process_id("gw"))
        self._logs: list[ResponseId] = []
        self._real: list[str] = []
        self._rss = rss_bytes(nats.pid)

    async def ask_some(self, stack: AsyncExitStack) -> None:
        """Real responses, to be resumed later; the oldest in the stream."""
        sim = {"inter_token_ms": 1, "prefill_base_ms": 1, "mean_output_tokens": 0}
        await sim_worker(stack, self._folder, self._nats, sim)
        async with AsyncExitStack() as own:
            _, port = await gateway(own, self._folder, self._nats.url, self._redis.url)
            told = await asking(port, "ws", streams=4, tokens=TOKENS, seconds=3, spread_s=0)
        self._real = [answer["id"] for answer in told["answers"]]

    async def fill(self, size: int) -> dict[str, Any]:
        """Up to so many subjects."""
        count = size // 2 - len(self._logs)
        used_s, begun_s = cpu_s(self._nats.pid), time.perf_counter()
        published = await self._publish(count)
        seconds = time.perf_counter() - begun_s
        info = (await self._broker.js.stream_info(subjects.REPLIES)).state
        return {
            "messages": info.messages,
            "MiB": round(info.bytes / 2**20),
            "file_bytes_a_message": round(info.bytes / info.messages),
            "nats_memory_bytes_a_subject": round((rss_bytes(self._nats.pid) - self._rss) / size),
            "stored_per_s": round(published / seconds),
            "nats_cpu_us_a_message": round((cpu_s(self._nats.pid) - used_s) / published * 1e6, 1),
        }

    async def _publish(self, count: int) -> int:
        """So many logs as workers write them, without waiting but for each chunk's last message. How many
        messages."""
        each = TOKENS // self._messages
        started = codec.encode(
            Started(attempt=1, worker=WorkerId("wk-bench"), ack_subject="$JS.ACK." + 60 * "x")
        )
        ids = tuple(range(1000, 1000 + TOKENS))
        usage = Usage(prompt_tokens=20, completion_tokens=TOKENS)
        sent, publish = 0, self._broker.nc.publish
        for _ in range(count):
            response = new_response_id()
            self._logs.append(response)
            subject = subjects.reply(self._owner, response, SESSION)
            fence = Fence(1_000_000 + sent)
            await publish(f"{subject}.f", started)
            for offset in range(0, TOKENS, each):
                piece = Tokens(fence=fence, offset=offset, ids=ids[offset : offset + each])
                await publish(f"{subject}.t", codec.encode(piece))
            finished = Finished(
                fence=fence, total=TOKENS, reason="length", ids=ids, usage=usage, timings=Timings()
            )
            data, headers = codec.encode(finished), {MSG_ID: f"{response}-end-{fence}"}
            sent += 2 + self._messages
            if sent % CHUNK < 2 + self._messages:
                await jetstream.publish(self._broker, f"{subject}.t", data, headers, timeout_s=60)
            else:
                await publish(f"{subject}.t", data, headers=headers)
        await self._store(new_response_id())
        return sent

    async def _store(self, response: ResponseId) -> None:
        """One message, and its ack: all that was published before it is stored, too."""
        subject = subjects.reply(self._owner, response, SessionToken("x"))
        await jetstream.publish(self._broker, f"{subject}.t", bytes(60), timeout_s=60)

    async def look(self, *, started: bool = True) -> dict[str, Any]:
        """Milliseconds, p50 and p99. ``started``: also how long processes take to start, and what is resumed
        there; seconds."""
        newest = self._logs[-len(self._logs) // 4 :]

        async def read(response: ResponseId) -> None:
            names = subjects.reply_log(self._owner, response, SESSION)
            found = await read_stored(self._broker, subjects.REPLIES, names)
            assert len(found) == 2 + self._messages, response

        async def state(_: ResponseId) -> None:
            await retention(self._broker, subjects.REPLIES)

        chosen = random.Random(1).choices(newest, k=PROBES)
        found: dict[str, Any] = {
            "read_by_id_ms": await _timed(read, chosen),
            "store_ms": await _timed(self._store, [new_response_id() for _ in range(PROBES)]),
            "stream_info_ms": await _timed(state, chosen),
        }
        return {**found, **await self._starts()} if started else found

    async def _starts(self) -> dict[str, Any]:
        begun_s = time.perf_counter()
        await asyncio.to_thread(self._nats.restart)
        await self._broker.wait_connected()
        while True:
            try:
                await retention(self._broker, subjects.REPLIES)
                break
            except (HeadraceError, ApiError):
                assert time.perf_counter() - begun_s < RESTART_LIMIT_S
                await asyncio.sleep(0.02)
        nats_s = time.perf_counter() - begun_s
        nats_bytes = rss_bytes(self._nats.pid)
        async with AsyncExitStack() as own:
            begun_s = time.perf_counter()
            _, port = await gateway(own, self._folder, self._nats.url, self._redis.url)
            gateway_s = time.perf_counter() - begun_s
            http = await own.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}"))

            async def resume(response: str) -> None:
                answer = await http.get(f"/v1/responses/{response}?stream=true")
                assert "response.incomplete" in answer.text, answer.text

            resumed = await _timed(resume, self._real[:RESUMED])
        return {
            "nats_restart_s": round(nats_s, 2),
            "nats_MiB_after_it": round(nats_bytes / 2**20),
            "gateway_start_s": round(gateway_s, 2),
            "resume_elsewhere_ms": resumed,
        }

    async def squeeze(self, pushed: int) -> dict[str, Any]:
        """The limit is what is there now; then so many more logs."""
        before = (await self._broker.js.stream_info(subjects.REPLIES)).state
        config = msgspec.structs.replace(self._nats.config, replies_max_bytes=before.bytes)
        smaller = await Broker.connect(config, name="bench")
        await topology.apply(smaller)
        await smaller.close()
        used_s, begun_s = cpu_s(self._nats.pid), time.perf_counter()
        published = await self._publish(pushed)
        seconds = time.perf_counter() - begun_s
        after = (await self._broker.js.stream_info(subjects.REPLIES)).state
        assert after.bytes <= before.bytes
        return {
            "messages": after.messages,
            "MiB": round(after.bytes / 2**20),
            "file_bytes_a_message": round(after.bytes / after.messages),
            "pushed_out": after.first_seq - before.first_seq,
            "stored_per_s": round(published / seconds),
            "nats_cpu_us_a_message": round((cpu_s(self._nats.pid) - used_s) / published * 1e6, 1),
        }


async def _timed(step: Callable[[Any], Awaitable[None]], over: Sequence[Any]) -> dict[str, float]:
    """One after the other, in milliseconds; ``percentiles`` has tenths, which are too coarse for some."""
    took_us = []
    for each in over:
        begun_s = time.perf_counter()
        await step(each)
        took_us.append((time.perf_counter() - begun_s) * 1e6)
    ranks = percentiles(took_us)
    return {name: round(ranks[name] / 1000, 2) for name in ("p50", "p99")}


def _print(figures: Mapping[str, Any], console: Console) -> None:
    cases = [name for name in figures if name != "settings"]
    table = Table("REPLIES", *cases)
    rows = list(dict.fromkeys(row for name in cases for row in figures[name]))
    for row in rows:
        shown = []
        for name in cases:
            value = figures[name].get(row, "")
            shown.append(f"{value['p50']} / {value['p99']}" if isinstance(value, dict) else str(value))
        table.add_row(row, *shown)
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reply_stream", description=__doc__)
    parser.add_argument("--subjects", type=int, nargs="+", default=[1000, 100_000, 500_000])
    parser.add_argument("--messages", type=int, default=2, help="of tokens, in each log; 32 tokens in all")
    parser.add_argument("--pushed", type=int, default=25_000, help="logs that come while the stream is full")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
