"""``python -m tests.bench.overhead``: the time to the first token that the pipeline adds to its engine's own.

The simulated engine, called in process, against the same one behind gateway, queue and worker: one
response after the other, and with 32 and 128 streams of 10 ms a token, over WebSocket and SSE. Each run
has a process of its own that loads it; medians over the repeats. Where the time goes is read from the
stored messages: edge (client to stored job), queue (to the stored ``Started``), engine, worker (to the
first stored tokens), delivery (to the client). Then what admission costs: the same requests with limits,
the response cache, a conversation, and the Redis commands that each takes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

import msgspec
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from broker import subjects
from broker.connection import Broker
from schemas.config import Nats
from schemas.ids import ResponseId
from tests.bench.bare_engine import bare
from tests.bench.layout import gateway, servers, sim_worker
from tests.bench.program import carry_out
from tests.bench.streams import asking

BUDGET_MS = {1: 3.0, 32: 6.0, 128: 12.0}
PARTS = ("edge", "queue", "engine", "worker", "delivery")
SAMPLE = 150  # responses of a run whose stored messages are looked at
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_responses")


def main() -> int:
    args = _arguments()
    return carry_out(_run(args), _print, args)


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    sim = {
        "slots": 192,
        "inter_token_ms": args.inter_token_ms,
        "prefill_base_ms": args.prefill_ms,
        "prefill_us_per_token": 0,
        "mean_output_tokens": 0,
        "split_characters": False,  # of the engine in process, too
    }
    figures["bare"] = {str(streams): await _bare(sim, streams, args) for streams in args.streams}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with AsyncExitStack() as stack:
            nats, redis = await servers(stack, Path(folder))
            await sim_worker(stack, Path(folder), nats, sim)
            _, port = await gateway(stack, Path(folder), nats.url, redis.url)
            broker = await Broker.connect(Nats(url=nats.url), name="bench")
            stack.push_async_callback(broker.close)
            await asking(port, "ws", streams=4, tokens=20, seconds=1.0, spread_s=0.1)  # warm
            for transport in args.transports:
                runs = {
                    str(streams): await _piped(broker, port, transport, streams, args)
                    for streams in args.streams
                }
                figures[transport] = runs
            with _limits_set():
                _, limited = await gateway(stack, Path(folder), nats.url, redis.url)
            figures["admission"] = await _admission(redis.url, port, limited, args)
    return figures


def _length(streams: int, args: argparse.Namespace) -> tuple[int, float]:
    """Tokens of each answer, and seconds over which the streams begin: one answer's time, so that they end
    evenly. A lone one is short, for there to be many."""
    tokens = 5 if streams == 1 else args.tokens
    return tokens, 0.0 if streams == 1 else tokens * args.inter_token_ms / 1000


async def _bare(sim: Mapping[str, object], streams: int, args: argparse.Namespace) -> dict[str, float]:
    tokens, spread_s = _length(streams, args)
    runs = [
        await bare(sim, streams=streams, tokens=tokens, seconds=args.seconds, spread_s=spread_s)
        for _ in range(args.repeats)
    ]
    return _medians([_ranks(run["first_ms"]) for run in runs])


async def _piped(
    broker: Broker, port: int, transport: str, streams: int, args: argparse.Namespace
) -> dict[str, Any]:
    tokens, spread_s = _length(streams, args)
    ranks, parts, loads = [], [], []
    for _ in range(args.repeats):
        seconds = args.seconds + spread_s
        told = await asking(
            port, transport, streams=streams, tokens=tokens, seconds=seconds, spread_s=spread_s
        )
        warm_s = min(answer["begun_s"] for answer in told["answers"]) + spread_s
        answers = [answer for answer in told["answers"] if answer["begun_s"] >= warm_s]
        ranks.append(_ranks([(answer["first_s"] - answer["begun_s"]) * 1000 for answer in answers]))
        step = max(1, len(answers) // SAMPLE)
        looked_at = [await _parts(broker, answer) for answer in answers[::step]]
        parts.append({name: fmean(each[name] for each in looked_at) for name in PARTS})
        loads.append({"responses": len(answers), "client_cpu_percent": told["client_cpu_percent"]})
    return {**_medians(ranks), "parts_ms": _medians(parts), **_medians(loads)}


async def _parts(broker: Broker, answer: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of one response. All clocks are this machine's."""
    response = ResponseId(answer["id"])
    of_log = subjects.replies_of_response(response).removesuffix(">")
    job_s = await _stored_s(broker, subjects.JOBS, subjects.job_by_response(response))
    started_s = await _stored_s(broker, subjects.REPLIES, f"{of_log}*.f")
    tokens_s = await _stored_s(broker, subjects.REPLIES, f"{of_log}*.t")
    engine_ms = answer["timings"]["engine_queue_ms"] + answer["timings"]["prefill_ms"]
    return {
        "edge": (job_s - answer["begun_s"]) * 1000,
        "queue": (started_s - job_s) * 1000,
        "engine": engine_ms,
        "worker": (tokens_s - started_s) * 1000 - engine_ms,
        "delivery": (answer["first_s"] - tokens_s) * 1000,
    }


async def _stored_s(broker: Broker, stream: str, subject: str) -> float:
    """When the first message was stored: to the microsecond, where ``jetstream`` tells milliseconds."""
    query = msgspec.json.encode({"seq": 1, "next_by_subj": subject})
    found = await broker.request(f"$JS.API.DIRECT.GET.{stream}", query)
    assert found.headers is not None
    return datetime.fromisoformat(found.headers["Nats-Time-Stamp"]).timestamp()


# -- admission --------------------------------------------------------------------------------------


@contextmanager
def _limits_set() -> Iterator[None]:
    """Processes started within have limits that nobody reaches."""
    names = [f"HEADRACE_LIMITS__{name.upper()}" for name in LIMITS]
    os.environ.update(dict.fromkeys(names, "100000000"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


async def _admission(
    redis_url: str, port: int, limited: int, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    ways: dict[str, tuple[int, dict[str, object]]] = {
        "as shipped": (port, {}),
        "limits of requests, tokens, concurrency": (limited, {}),
        "cache looked up (temperature 0)": (port, {"temperature": 0}),
        "in a conversation": (port, {"conversation": "bench"}),
    }
    found = {}
    for name, (where, body) in ways.items():
        before = await _redis_calls(redis_url)
        told = await asking(where, "ws", streams=1, tokens=5, seconds=args.seconds, spread_s=0, body=body)
        await asyncio.sleep(0.3)  # what is done behind the answer: leases given back, turns remembered
        after = await _redis_calls(redis_url)
        answers = told["answers"]
        calls = {kind: (count - before.get(kind, 0)) / len(answers) for kind, count in after.items()}
        ranks = _ranks([(answer["first_s"] - answer["begun_s"]) * 1000 for answer in answers])
        found[name] = {
            **ranks,
            "edge_ms": round(median(answer["timings"]["edge_ms"] for answer in answers), 2),
            "redis_calls": {kind: round(each, 1) for kind, each in calls.items() if each >= 0.1},
        }
    return found


async def _redis_calls(url: str) -> dict[str, int]:
    """Calls so far, by command. Those of a script count beside its ``evalsha``."""
    redis = Redis.from_url(url)
    try:
        told = await redis.info("commandstats")
    finally:
        await redis.aclose()
    return {
        name.removeprefix("cmdstat_"): stats["calls"] for name, stats in told.items() if "info" not in name
    }


# -- figures ----------------------------------------------------------------------------------------


def _ranks(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p99": ordered[min(last, int(0.99 * len(ordered)))]}


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(median(run[name] for run in runs), 2) for name in runs[0]}


def _print(figures: Mapping[str, Any], console: Console) -> None:
    table = Table(title="time to first token, ms (medians of the repeats)")
    for name in ("", "streams", "p50", "p99", "added p50", "added p99", "budget p50", "client CPU"):
        table.add_column(name)
    for streams, alone in figures["bare"].items():
        table.add_row(
            "engine in process", streams, f"{alone['p50']:.2f}", f"{alone['p99']:.2f}", "", "", "", ""
        )
    for transport in [name for name in ("ws", "sse") if name in figures]:
        for streams, run in figures[transport].items():
            alone = figures["bare"][streams]
            added = [f"{run[rank] - alone[rank]:.2f}" for rank in ("p50", "p99")]
            budget = BUDGET_MS.get(int(streams))
            shown = (f"{run['p50']:.2f}", f"{run['p99']:.2f}", *added, f"{budget:g}" if budget else "")
            table.add_row(f"headrace, {transport}", streams, *shown, f"{run['client_cpu_percent']} %")
    console.print(table)
    parts = Table("", "streams", *PARTS, title="where it goes: mean ms to the first token")
    for transport in [name for name in ("ws", "sse") if name in figures]:
        for streams, run in figures[transport].items():
            parts.add_row(transport, streams, *(f"{run['parts_ms'][name]:.2f}" for name in PARTS))
    console.print(parts)
    table = Table("admission", "TTFT p50", "p99", "edge p50", "Redis calls each", title="one at a time, ms")
    for name, way in figures["admission"].items():
        calls = ", ".join(f"{kind} {each:g}" for kind, each in way["redis_calls"].items())
        table.add_row(name, f"{way['p50']:.2f}", f"{way['p99']:.2f}", str(way["edge_ms"]), calls)
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.overhead", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--transports", nargs="+", choices=["ws", "sse"], default=["ws", "sse"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run, warm-up not counted")
    parser.add_argument("--tokens", type=int, default=150, help="of each answer among many")
    parser.add_argument("--inter-token-ms", type=float, default=10.0)
    parser.add_argument("--prefill-ms", type=float, default=5.0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
