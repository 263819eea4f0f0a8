"""``python -m tests.bench.peers [paced|real]``: Headrace beside what people would pick instead, asked by the
same client (``headrace bench``), on one machine in one run.

- ``paced``: engines that only keep time, so that what is seen is the serving system: Headrace, NVIDIA
  Dynamo's frontend (its mocker as the engine; as shipped, and with TCP_NODELAY, which it leaves off),
  LiteLLM, and such an engine alone, which is the client's own floor.
- ``real``: the same model on vLLM with the same settings: Headrace, and ``vllm serve``.

The peers are installed into environments of their own at the first run. Prints tables; ``--json`` writes the
same and more.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

import msgspec
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from deploy.bench import ClosedLoop, Plan, Snapshot, Step, Target, Workload, measure
from deploy.bench.distribution import Fixed
from tests.bench.peers import services
from tests.bench.peers.services import Pace, Service, Start

PACED: Mapping[str, Start] = {
    "engine alone": services.engine_alone,
    "headrace": services.headrace,
    "dynamo": services.dynamo(nodelay=False),
    "dynamo, TCP_NODELAY": services.dynamo(nodelay=True),
    "litellm": services.litellm,
}
REAL: Mapping[str, Start] = {"headrace": services.headrace_vllm, "vllm serve": services.vllm_serve}
WIDTH = 150  # of a table that goes to a file


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One service under one load, once. ``cpu_us_per_token``: by part."""

    service: str
    concurrency: int
    cpu_us_per_token: dict[str, float]
    step: Step


class Results(msgspec.Struct, frozen=True, kw_only=True):
    comparison: str
    command: list[str]
    began: str
    cores: int
    measured: list[Measured]


def main() -> int:
    args = _arguments()
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        measured = runner.run(_run(args))
    results = Results(
        comparison=args.comparison,
        command=sys.argv,
        began=began,
        cores=len(os.sched_getaffinity(0)),
        measured=measured,
    )
    width = None if sys.stdout.isatty() else WIDTH
    _print(results, Console(width=width, soft_wrap=True, highlight=False))
    if args.json is not None:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    return 0


async def _run(args: argparse.Namespace) -> list[Measured]:
    """One service at a time: they share the machine with nobody but their client."""
    chosen = PACED if args.comparison == "paced" else REAL
    pace = Pace(args.inter_token_ms)
    measured = []
    for _ in range(args.repeats):
        for name, start in chosen.items():
            if args.only and name not in args.only:
                continue
            with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
                async with start(Path(folder), pace) as service:
                    measured += await _measure_all(service, args)
    return measured


async def _measure_all(service: Service, args: argparse.Namespace) -> list[Measured]:
    """As far as it lives."""
    measured = []
    try:
        for concurrency in args.concurrency:
            measured.append(await _measure(service, concurrency, args))
            print(_line(measured[-1]), file=sys.stderr, flush=True)
    except* psutil.NoSuchProcess:
        print(f"{service.name} has died", file=sys.stderr, flush=True)
    return measured


async def _measure(service: Service, concurrency: int, args: argparse.Namespace) -> Measured:
    plan = Plan(
        target=Target(api="chat", urls=(service.url,), model=service.model),
        load=ClosedLoop(concurrency),
        workload=Workload(prompt_tokens=Fixed(args.prompt_tokens), output_tokens=Fixed(args.output_tokens)),
        duration_s=args.seconds,
        warmup_s=args.warmup,
    )
    looks: list[tuple[float, dict[str, float]]] = []

    def look(snapshot: Snapshot) -> None:
        if snapshot.at_s >= 0:
            looks.append((time.monotonic(), service.cpu_s()))

    step = await measure(plan, watch=look)
    (from_s, before), (until_s, after) = looks[0], looks[-1]
    tokens = step.throughput.tokens_per_s * (until_s - from_s)
    cost = {part: 1e6 * (after[part] - before[part]) / tokens for part in after} if tokens else {}
    return Measured(service=service.name, concurrency=concurrency, cpu_us_per_token=cost, step=step)


def _line(measured: Measured) -> str:
    step = measured.step
    ended = f"{step.responses.completed} of {step.responses.due} completed"
    speed = f"TTFT {step.ttft_ms.p50:.1f} ms, {step.throughput.tokens_per_s:.0f} tokens/s"
    told = f"{measured.service}, {measured.concurrency} at once: {ended}, {speed}"
    return "; ".join([told, *step.client.complaints])


def _print(results: Results, console: Console) -> None:
    table = Table(
        *(
            "service",
            "at once",
            "TTFT p50",
            "p99",
            "gap p50",
            "p99",
            "tokens/s",
            "CPU us a token, by part",
            "not completed",
        ),
        title=f"{results.comparison}, {results.began}, {results.cores} cores; milliseconds; medians",
    )
    seen: dict[tuple[str, int], list[Measured]] = {}
    for each in results.measured:
        seen.setdefault((each.service, each.concurrency), []).append(each)
    for (service, concurrency), runs in seen.items():
        steps = [run.step for run in runs]
        parts = ", ".join(
            f"{part} {_of(run.cpu_us_per_token[part] for run in runs):.0f}"
            for part in runs[0].cpu_us_per_token
        )
        missed = sum(step.responses.due - step.responses.completed for step in steps)
        table.add_row(
            service,
            str(concurrency),
            f"{_of(step.ttft_ms.p50 for step in steps):.1f}",
            f"{_of(step.ttft_ms.p99 for step in steps):.1f}",
            f"{_of(step.gap_ms.p50 for step in steps):.1f}",
            f"{_of(step.gap_ms.p99 for step in steps):.1f}",
            f"{_of(step.throughput.tokens_per_s for step in steps):.0f}",
            parts,
            str(missed),
        )
    console.print(table)


def _of(figures: Iterable[float]) -> float:
    return median(figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("comparison", choices=("paced", "real"), nargs="?", default="paced")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--only", nargs="+", help="of the services, by name")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seconds", type=int, help="of measurement, behind the warm-up; else 6, real: 60")
    parser.add_argument("--warmup", type=int, help="seconds; else 2, real: 20")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, help="else 100, real: 32")
    parser.add_argument("--inter-token-ms", type=float, default=10.0, help="of the paced engines")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    # 64 streams of the real engine share some 90 tokens a second.
    usual = (60, 20, 32) if args.comparison == "real" else (6, 2, 100)
    for name, value in zip(("seconds", "warmup", "output_tokens"), usual, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


if __name__ == "__main__":
    sys.exit(main())
