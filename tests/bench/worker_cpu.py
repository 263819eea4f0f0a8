"""``python -m tests.bench.worker_cpu``: what a token costs the worker beside its engine, in CPU time.

A worker process with the simulated engine and 128 long responses, on a real broker; the same engine by
itself, in the same way, is subtracted. Twice: at 10 ms a token, where every token travels alone, and with
an engine that never waits, where the publisher is behind and merges. Medians over the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from broker import subjects
from broker.connection import Broker
from tests.bench.bare_engine import bare
from tests.bench.costs import cpu_s
from tests.bench.layout import READY_LIMIT_S
from tests.bench.program import carry_out
from tests.integration.conftest import NatsServer, free_port
from tests.integration.gateway.processes import Process
from tests.integration.workers.farm import Client, make_config, sim_model
from tests.process_tree import children

BUDGET_US = 6.0
MAX_TOKENS = 32_000
PACES = {"paced": 10.0, "saturated": 0.0}  # ms a token
_TOKENS = re.compile(r"^headrace_worker_completion_tokens_total\{.*\} (\S+)$", re.M)


def main() -> int:
    args = _arguments()
    return carry_out(_run(args), _print, args)


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    for name in args.paces:
        sim = {
            "slots": args.streams,
            "inter_token_ms": PACES[name],
            "prefill_base_ms": 1,
            "mean_output_tokens": 0,
        }
        runs = []
        for _ in range(args.repeats):
            alone = await bare(sim, streams=args.streams, tokens=MAX_TOKENS, seconds=args.seconds, warm_s=1.0)
            with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
                run = await _worker(Path(folder), sim, args)
            run["engine_us"] = alone["cpu_us_per_token"]
            run["beside_us"] = run["cpu_us"] - run["engine_us"]
            runs.append(run)
        figures[name] = {key: round(median(run[key] for run in runs), 2) for key in runs[0]}
    return figures


async def _worker(folder: Path, sim: Mapping[str, object], args: argparse.Namespace) -> dict[str, float]:
    """CPU time, tokens and messages between two moments in which all responses run."""
    async with AsyncExitStack() as stack:
        nats = NatsServer(folder / "nats")
        await asyncio.to_thread(nats.start)
        stack.callback(nats.stop)
        port = free_port()
        environ = {
            "HEADRACE_NATS__URL": nats.url,
            "HEADRACE_WORKER__ENGINE": "sim",
            "HEADRACE_WORKER__PORT": str(port),
            **{f"HEADRACE_SIM__{key.upper()}": str(value) for key, value in sim.items()},
        }
        guardian = Process("workers.guardian", folder / "worker.log", environ)
        stack.callback(guardian.kill)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}"))
        await _until_ready(http)
        (pid,) = children(guardian.pid)
        broker = await Broker.connect(nats.config, name="bench")
        stack.push_async_callback(broker.close)
        config = make_config(nats.config, **sim)
        asker = Client(broker, config, sim_model(config, folder))
        jobs = [
            asker.job((n, 2, 3), deadline_s=600, max_tokens=MAX_TOKENS, ignore_eos=True)
            for n in range(args.streams)
        ]
        await asker.submit(*jobs)
        while await _tokens(http) < 20 * args.streams:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)
        if args.py_spy is not None:
            await _record(pid, args)
        before = await _seen(broker, http, pid)
        await asyncio.sleep(args.seconds)
        after = await _seen(broker, http, pid)
        wall_s, used_s, tokens, messages = (b - a for a, b in zip(before, after, strict=True))
        return {
            "tokens_per_s": tokens / wall_s,
            "tokens_per_message": tokens / max(1.0, messages),
            "cpu_us": used_s / tokens * 1e6,
        }


async def _seen(broker: Broker, http: httpx.AsyncClient, pid: int) -> tuple[float, float, float, float]:
    tokens = await _tokens(http)
    state = (await broker.js.stream_info(subjects.REPLIES)).state
    return time.monotonic(), cpu_s(pid), tokens, state.messages


async def _tokens(http: httpx.AsyncClient) -> float:
    found = _TOKENS.search((await http.get("/metrics")).text)
    return float(found[1]) if found else 0.0


async def _until_ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(READY_LIMIT_S):
        while True:
            try:
                if (await http.get("/healthz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


async def _record(pid: int, args: argparse.Namespace) -> None:
    command = ["py-spy", "record", "--pid", str(pid), "--duration", f"{args.seconds:.0f}", "--rate", "500"]
    command += ["--format", "raw", "--function", "--output", str(args.py_spy)]
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name(command[0]), *command[1:], stdout=asyncio.subprocess.DEVNULL
    )
    await process.wait()


def _print(figures: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"CPU us a token, {figures['settings']['streams']} streams")
    for name in ("", "tokens/s", "tokens a message", "worker", "engine alone", "beside the engine", "budget"):
        table.add_column(name)
    for name in [pace for pace in PACES if pace in figures]:
        run = figures[name]
        shown = (f"{run[key]:.2f}" for key in ("tokens_per_message", "cpu_us", "engine_us", "beside_us"))
        table.add_row(name, f"{run['tokens_per_s']:.0f}", *shown, f"{BUDGET_US:g}")
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.worker_cpu", description=__doc__)
    parser.add_argument("--paces", nargs="+", choices=list(PACES), default=list(PACES))
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--py-spy", type=Path, help="record a profile of the worker here, as raw stacks")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
