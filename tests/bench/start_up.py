"""``python -m tests.bench.start_up``: how long each part takes from its start until it serves, and what
it weighs then. One after the other, medians over the repeats; vLLM takes most of a minute and is left out
unless asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.costs import rss_bytes
from tests.bench.layout import gateway, sim_environ, until_answers
from tests.bench.program import carry_out
from tests.integration.conftest import NatsServer, RedisServer, free_port
from tests.integration.gateway.processes import Process
from tests.process_tree import descendants


def main() -> int:
    args = _arguments()
    return carry_out(_run(args), _print, args)


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    runs = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            async with AsyncExitStack() as stack:
                runs.append(await _once(stack, Path(folder), args.engines))
    return {
        part: {name: round(median(run[part][name] for run in runs), 2) for name in ("seconds", "mib")}
        for part in runs[0]
    }


async def _once(stack: AsyncExitStack, folder: Path, engines: list[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}

    def note(part: str, begun_s: float, pid: int) -> None:
        below = sum(map(rss_bytes, descendants(pid)))
        found[part] = {"seconds": time.monotonic() - begun_s, "mib": (rss_bytes(pid) + below) / 2**20}

    nats, redis = NatsServer(folder / "nats"), RedisServer(folder / "redis")
    for part, server in (("nats-server", nats), ("valkey", redis)):
        begun_s = time.monotonic()
        await asyncio.to_thread(server.start)
        stack.callback(server.stop)
        note(part, begun_s, server.pid)
    for engine in engines:
        port = free_port()
        environ = {
            "HEADRACE_NATS__URL": nats.url,
            "HEADRACE_WORKER__ENGINE": engine,
            "HEADRACE_WORKER__PORT": str(port),
            **sim_environ({"name": "headrace-sim"}),
        }
        begun_s = time.monotonic()
        worker = Process("workers.guardian", folder / f"{engine}.log", environ)
        stack.push_async_callback(asyncio.to_thread, worker.end)
        await until_answers(f"http://127.0.0.1:{port}/healthz", {200})
        note(f"worker, {engine}", begun_s, worker.pid)
    begun_s = time.monotonic()
    process, _ = await gateway(stack, folder, nats.url, redis.url)
    note("gateway", begun_s, process.pid)
    return found


def _print(figures: Mapping[str, Any], console: Console) -> None:
    table = Table("part", "seconds until it serves", "MiB then, with its children")
    for part, run in figures.items():
        table.add_row(part, f"{run['seconds']:.2f}", f"{run['mib']:.0f}")
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.start_up", description=__doc__)
    parser.add_argument("--engines", nargs="+", choices=["sim", "vllm"], default=["sim"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
