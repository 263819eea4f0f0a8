"""``python -m tests.bench.gateway_cpu``: what a token costs a gateway, and how many streams one carries.

One gateway process on real servers; a feeder plays the worker and a process of raw clients reads, so that
neither is what is measured. CPU time is the gateway process's own, from /proc, over the tokens that it
counted in the same time, in the middle of a run: accepting and ending are left out. ``--ceiling`` looks for
the most streams with an ITL p99 under 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from tests.bench.costs import cpu_s, machine_idle_s
from tests.bench.feeder import ACK_WAIT_S
from tests.bench.layout import gateway, servers
from tests.integration.gateway.processes import Process

ITL_P99_MS = 50.0
FIRST_LOOK_S = 0.25
SAMPLE_S = 1.5  # each costs the gateway some 10 ms
SETTLE_S = 1.0
LIMIT_S = 150.0
_COUNTER = "headrace_gateway_completion_tokens_total{"


@dataclass(frozen=True)
class Case:
    """``inter_token_ms`` 0: as fast as it goes. ``per_message``: tokens that the worker sends together."""

    name: str
    surface: str
    streams: int
    inter_token_ms: float
    per_message: int
    tokens: int


def cases(seconds: float) -> list[Case]:
    paced = int(seconds * 100)
    return [
        Case("paced 10 ms, alone", "ws", 1, 10, 1, paced),
        *(Case("paced 10 ms, un-merged", surface, 128, 10, 1, paced) for surface in ("ws", "sse", "chat")),
        *(Case("flood, un-merged", surface, 128, 0, 1, 4 * paced) for surface in ("ws", "sse")),
        *(Case("flood, 8 a message", surface, 128, 0, 8, 16 * paced) for surface in ("ws", "sse")),
    ]


async def measure(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            nats, redis = await servers(stack, folder)
            feeder = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.bench.feeder", nats.url, str(folder / "tokenizers")),
                *("--inter-token-ms", str(case.inter_token_ms), "--per-message", str(case.per_message)),
                *("--together", str(case.streams)),
                stdin=asyncio.subprocess.PIPE,
            )
            stack.push_async_callback(_end, feeder)
            process, port = await gateway(
                stack, folder, nats.url, redis.url, {"HEADRACE_NATS__ACK_WAIT_S": f"{ACK_WAIT_S:g}"}
            )
            readers = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.bench.readers", str(port), "--surface", case.surface),
                *("--streams", str(case.streams), "--tokens", str(case.tokens)),
                stdout=asyncio.subprocess.PIPE,
            )
            stack.push_async_callback(_end, readers)
            sampling = asyncio.create_task(_sample(process, port, case), name="sample")
            async with asyncio.timeout(LIMIT_S):
                out, _ = await readers.communicate()
            sampling.cancel()
            if readers.returncode:
                raise RuntimeError(f"the readers ended with {readers.returncode}")
            return {**asdict(case), **json.loads(out), **(await sampling)}


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        if process.stdin is not None:
            process.stdin.close()
        else:
            process.terminate()
        await process.wait()


async def _sample(process: Process, port: int, case: Case) -> dict[str, float]:
    """Until cancelled."""
    total, url = case.streams * case.tokens, f"http://127.0.0.1:{port}/metrics"
    async with httpx.AsyncClient() as http:
        while not await _tokens(http, url):
            await asyncio.sleep(FIRST_LOOK_S)
        await asyncio.sleep(SETTLE_S)
        begun = time.perf_counter(), await _tokens(http, url), cpu_s(process.pid), machine_idle_s()
        last = begun
        try:
            while True:
                await asyncio.sleep(SAMPLE_S)
                used_s, idle_s = cpu_s(process.pid), machine_idle_s()
                now = time.perf_counter(), await _tokens(http, url), used_s, idle_s
                if now[1] >= total:
                    await asyncio.Event().wait()
                last = now
        except asyncio.CancelledError:
            pass
    tokens, cpu = last[1] - begun[1], last[2] - begun[2]
    seconds = last[0] - begun[0]
    idle = (last[3] - begun[3]) / seconds / (os.cpu_count() or 1) if seconds else 0.0
    return {
        "counted_tokens": tokens,
        "gateway_cpu_s": round(cpu, 2),
        "us_per_token": round(1e6 * cpu / tokens, 1) if tokens else 0.0,
        "tokens_per_s": round(tokens / seconds) if seconds else 0,
        "cores": round(cpu / seconds, 2) if seconds else 0.0,
        "machine_busy_percent": round(100 * (1 - idle), 1),
    }


async def _tokens(http: httpx.AsyncClient, url: str) -> float:
    text = (await http.get(url)).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(_COUNTER))


async def ceiling(surface: str, inter_token_ms: float, first: int, tries: int) -> list[dict[str, Any]]:
    """Doubling until it is too much, then halving what lies between."""
    found: list[dict[str, Any]] = []
    good, bad, streams = 0, 0, first
    for _ in range(tries):
        tokens = round(6000 / inter_token_ms)
        case = Case("ceiling", surface, streams, inter_token_ms, 1, tokens)
        try:
            result = await measure(case)
        except TimeoutError:
            result = {**asdict(case), "itl_ms": {}}  # it did not come to an end
        found.append(result)
        if result["itl_ms"].get("p99", ITL_P99_MS) < ITL_P99_MS:
            good = streams
        else:
            bad = streams
        streams = 2 * good if not bad else (good + bad) // 2
    return found


def show(results: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(
        "case",
        "surface",
        "streams",
        "tokens/s",
        "gateway cores",
        "CPU us/token",
        "tokens/event",
        "ITL p99 ms",
        "machine busy",
    )
    for result in results:
        events = result.get("events", 0)
        table.add_row(
            str(result["name"]),
            str(result["surface"]),
            str(result["streams"]),
            str(result.get("tokens_per_s", "")),
            str(result.get("cores", "")),
            str(result.get("us_per_token", "")),
            f"{result['tokens'] / events:.2f}" if events else "",
            str(result["itl_ms"].get("p99", "")),
            f"{result['machine_busy_percent']} %" if "machine_busy_percent" in result else "",
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gateway_cpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of the paced cases")
    parser.add_argument("--only", default="", help="cases whose name and surface hold this, as 'paced ws'")
    parser.add_argument("--ceiling", choices=("ws", "sse", "chat"), help="instead of the cases")
    parser.add_argument("--inter-token-ms", type=float, default=20.0, help="of the ceiling's streams")
    parser.add_argument("--streams", type=int, default=256, help="where the ceiling is looked for first")
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    console = Console(width=120, highlight=False)
    if args.ceiling:
        results = asyncio.run(ceiling(args.ceiling, args.inter_token_ms, args.streams, args.tries))
    else:
        words = args.only.split()
        chosen = [c for c in cases(args.seconds) if all(w in f"{c.name} {c.surface}" for w in words)]
        results = [asyncio.run(measure(case)) for case in chosen]
    show(results, console)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
