"""``python -m tests.bench.scaling``: 1, 2 and 4 gateways, and as many workers, on one machine.

Three loads for each layout: long answers and short ones at a pace that two cores bear, from which what a
token and what a response cost each part is told apart (two lengths, two unknowns; what it costs at rest is
subtracted); and one that the machine does not bear, in which parts merge. From these follows what each part
could do on a core of its own; the third is also what they do here together, where broker and clients share
the cores. The workers' engine is the simulated one, whose cost is counted as theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from tests.bench.costs import cpu_s, machine_idle_s
from tests.bench.layout import gateway, servers, sim_worker
from tests.bench.program import carry_out
from tests.bench.streams import asking
from tests.chaos.failover import percentiles
from tests.process_tree import descendants

LAYOUTS = ("1x1", "2x1", "4x1", "1x2", "1x4", "4x4")
BUSY_PERCENT = 95.0  # of the machine: beyond, it was the limit, and not a part
READY_S = 40.0
REST_S = 2.0
_ALIVE = re.compile(r"^headrace_workers_alive\{.*\} (\S+)$", re.M)


@dataclass(frozen=True)
class Load:
    """``streams`` over all gateways, each asking again as soon as it is answered."""

    streams: int
    tokens: int


@dataclass
class Stage:
    """``pids``: what belongs to each part, by part. ``ports``: of the gateways."""

    pids: dict[str, list[int]]
    ports: list[int]
    inter_token_ms: float
    seconds: float


def main() -> int:
    args = _arguments()
    return carry_out(_run(args), _print, args)


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    loads = {
        "long": Load(args.streams, args.tokens),
        "short": Load(args.streams // 4, args.short_tokens),
        "all": Load(4 * args.streams, args.tokens),
    }
    layouts = [tuple(map(int, name.split("x"))) for name in args.layouts]
    sim = {
        "slots": 4 * args.streams,
        "inter_token_ms": args.inter_token_ms,
        "prefill_base_ms": 1,
        "prefill_us_per_token": 0,
        "mean_output_tokens": 0,
    }
    figures: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            nats, redis = await servers(stack, folder)
            workers = [await sim_worker(stack, folder, nats, sim)]
            edges = [
                await gateway(stack, folder, nats.url, redis.url)
                for _ in range(max(gateways for gateways, _ in layouts))
            ]
            for gateways, count in sorted(layouts, key=lambda layout: layout[1]):  # workers only come
                while len(workers) < count:
                    workers.append(await sim_worker(stack, folder, nats, sim))
                ports = [port for _, port in edges[:gateways]]
                for port in ports:
                    await _until_seen(port, count)
                pids = {
                    "gateways": [process.pid for process, _ in edges],
                    "workers": [pid for each in workers for pid in (each.pid, *descendants(each.pid))],
                    "nats": [nats.pid],
                    "redis": [redis.pid],
                }
                stage = Stage(pids, ports, args.inter_token_ms, args.seconds)
                rest = await _at_rest(stage)
                runs = {load: await _load(stage, of, rest) for load, of in loads.items()}
                figures[f"{gateways}x{count}"] = {**runs, "costs_us": _costs(runs)}
                print(f"{gateways}x{count} is done", file=sys.stderr)
    return figures


async def _until_seen(port: int, workers: int) -> None:
    """The gateway knows of all workers."""
    async with asyncio.timeout(READY_S), httpx.AsyncClient() as http:
        while True:
            found = _ALIVE.search((await http.get(f"http://127.0.0.1:{port}/metrics")).text)
            if found is not None and float(found[1]) >= workers:
                return
            await asyncio.sleep(0.2)


async def _at_rest(stage: Stage) -> dict[str, float]:
    """Cores that each part uses while nothing is asked."""
    before = _used(stage)
    await asyncio.sleep(REST_S)
    return {part: (used - before[part]) / REST_S for part, used in _used(stage).items()}


async def _load(stage: Stage, load: Load, rest: Mapping[str, float]) -> dict[str, Any]:
    spread_s = load.tokens * stage.inter_token_ms / 1000
    clients = [
        asking(
            port,
            "ws",
            streams=load.streams // len(stage.ports),
            tokens=load.tokens,
            seconds=stage.seconds + spread_s,
            spread_s=spread_s,
        )
        for port in stage.ports
    ]
    before, idle_s, begun_s = _used(stage), machine_idle_s(), time.monotonic()
    told = await asyncio.gather(*clients)
    after, wall_s = _used(stage), time.monotonic() - begun_s
    busy = 100 - 100 * (machine_idle_s() - idle_s) / (wall_s * (os.cpu_count() or 1))
    answers = [answer for each in told for answer in each["answers"]]
    tokens = sum(answer["tokens"] for answer in answers)
    return {
        "responses": len(answers),
        "tokens": tokens,
        "tokens_per_s": round(_in_the_middle(answers, stage.seconds, spread_s)),
        "ttft_ms": percentiles([(each["first_s"] - each["begun_s"]) * 1000 for each in answers]),
        "tpot_ms": percentiles(
            [(each["ended_s"] - each["first_s"]) * 1000 / max(1, each["tokens"] - 1) for each in answers]
        ),
        "machine_busy_percent": round(busy, 1),
        "client_cpu_percent": round(sum(each["client_cpu_percent"] for each in told), 1),
        "cores": {part: round((after[part] - before[part]) / wall_s, 2) for part in before},
        "cpu_us_per_response": {
            part: round((after[part] - before[part] - rest[part] * wall_s) / len(answers) * 1e6, 1)
            for part in before
        },
    }


def _in_the_middle(answers: Sequence[Mapping[str, Any]], seconds: float, spread_s: float) -> float:
    """Tokens a second while all streams are there; an answer's tokens are spread evenly over its time."""
    begun_s = min(answer["begun_s"] for answer in answers) + spread_s
    until_s = begun_s + seconds - spread_s if seconds > spread_s else begun_s + seconds
    within = 0.0
    for answer in answers:
        span_s = max(1e-6, answer["ended_s"] - answer["begun_s"])
        shared_s = min(until_s, answer["ended_s"]) - max(begun_s, answer["begun_s"])
        within += answer["tokens"] * max(0.0, shared_s) / span_s
    return within / (until_s - begun_s)


def _used(stage: Stage) -> dict[str, float]:
    return {part: sum(map(cpu_s, pids)) for part, pids in stage.pids.items()}


def _costs(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Microseconds of CPU of each part: a token, a response (with no token in it), and a token when all are
    at their limit and merge."""
    found = {}
    sizes = {name: runs[name]["tokens"] / runs[name]["responses"] for name in runs}
    for part, long_us in runs["long"]["cpu_us_per_response"].items():
        short_us = runs["short"]["cpu_us_per_response"][part]
        token = max(0.0, (long_us - short_us) / (sizes["long"] - sizes["short"]))
        response = max(0.0, short_us - sizes["short"] * token)
        merged = max(0.0, runs["all"]["cpu_us_per_response"][part] - response) / sizes["all"]
        found[part] = {"token": round(token, 1), "response": round(response), "merged": round(merged, 1)}
    return found


def _print(figures: Mapping[str, Any], console: Console) -> None:
    layouts = [name for name in figures if name != "settings"]
    table = Table(
        *("gateways x workers", "load", "tokens/s", "responses", "TTFT p50 ms", "p99", "TPOT p50 ms", "p99"),
        *("gateway cores", "machine busy", "limit"),
        title="measured, all on one machine",
    )
    for name in layouts:
        for load in ("long", "short", "all"):
            run = figures[name][load]
            ranks = [str(run[what][rank]) for what in ("ttft_ms", "tpot_ms") for rank in ("p50", "p99")]
            busy = run["machine_busy_percent"]
            limit = "the machine" if busy >= BUSY_PERCENT else ""
            table.add_row(
                *(name, load, str(run["tokens_per_s"]), str(run["responses"]), *ranks),
                *(str(run["cores"]["gateways"]), f"{busy} %", limit),
            )
    console.print(table)
    parts = list(figures[layouts[0]]["costs_us"])
    costs = Table("gateways x workers", *parts, title="CPU us of each part: a token (merged), a response")
    for name in layouts:
        row = figures[name]["costs_us"]
        shown = (f"{each['token']:g} ({each['merged']:g}), {each['response']:g}" for each in row.values())
        costs.add_row(name, *shown)
    console.print(costs)
    tokens = float(figures["settings"]["tokens"])
    own = Table(
        *("part", "tokens/s of running answers", "merged", f"answers/s of {tokens:g} tokens", "merged"),
        title="what a core of its own would do",
    )
    for part in parts:
        each = {
            what: median(figures[name]["costs_us"][part][what] for name in layouts)
            for what in ("token", "merged", "response")
        }
        whole = (each["response"] + tokens * each[what] for what in ("token", "merged"))
        token, merged, of_answers, of_merged = (
            f"{1e6 / us:.0f}" if us else "" for us in (each["token"], each["merged"], *whole)
        )
        own.add_row(part, token, merged, of_answers, of_merged)
    console.print(own)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scaling", description=__doc__)
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, metavar="GxW", help="gateways x workers")
    parser.add_argument(
        "--streams", type=int, default=96, help="of long answers; a fourth of it of short ones"
    )
    parser.add_argument("--tokens", type=int, default=100, help="of a long answer")
    parser.add_argument("--short-tokens", type=int, default=4)
    parser.add_argument("--inter-token-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load, its beginning not counted")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
