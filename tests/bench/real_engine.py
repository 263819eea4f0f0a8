"""``python -m tests.bench.real_engine``: does the real engine ever wait for the network?

vLLM's engine core is pinned to one core, everything else to another. The same ``AsyncLLM``, in the same
process, answers the same prompts through Headrace (gateway, NATS, Redis and clients are processes of
their own) and called directly, in turn: bare, Headrace, Headrace, bare, … Prints tokens a second both
ways, and the CPU time of each part. The share of the bare throughput that Headrace reaches has a budget
of 98 %.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from broker import jetstream, subjects
from broker.connection import Broker
from broker.process import Shutdown
from schemas import codec
from schemas.config import Config
from schemas.job import Job
from tests.bench.costs import cpu_s, pin
from tests.bench.layout import gateway, servers
from tests.bench.program import carry_out
from tests.bench.streams import asking
from tests.integration.conftest import NatsServer
from workers.engine.vllm import VllmEngine
from workers.engine.vllm_sampling import vllm_params
from workers.models import resolve
from workers.worker import Worker

BUDGET_PERCENT = 98.0
WAYS = ("bare", "headrace")


@dataclass
class Stage:
    """What all runs share. ``pids``: of each part whose CPU time is told."""

    engine: VllmEngine
    broker: Broker
    port: int
    pids: Mapping[str, int]
    runs: int = 0


def main() -> int:
    args = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("this needs two cores", file=sys.stderr)
        return 1
    os.sched_setaffinity(0, set(cores[1:2]))  # and so every process from here on, but for the engine's
    return carry_out(_run(args, cores[0]), _print, args)


async def _run(args: argparse.Namespace, engine_core: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with AsyncExitStack() as stack:
            nats, redis = await servers(stack, Path(folder))
            slots = max(args.streams)
            engine = VllmEngine(resolve(args.model), slots=slots, table={"max_num_seqs": slots})
            core_pid = await _worker(stack, nats, engine, engine_core)
            process, port = await gateway(stack, Path(folder), nats.url, redis.url)
            broker = await Broker.connect(nats.config, name="bench")
            stack.push_async_callback(broker.close)
            pids = {
                "engine core": core_pid,
                "worker": os.getpid(),
                "nats": nats.pid,
                "redis": redis.pid,
                "gateway": process.pid,
            }
            stage = Stage(engine, broker, port, pids)
            await _headrace(stage, 4, args)  # warm
            for streams in args.streams:
                figures[str(streams)] = await _compare(stage, streams, args)
    return figures


async def _worker(stack: AsyncExitStack, nats: NatsServer, engine: VllmEngine, core: int) -> int:
    """A worker in this process, which has the engine's front. Returns the engine core's process."""
    config = Config()
    config = msgspec.structs.replace(
        config, nats=nats.config, worker=msgspec.structs.replace(config.worker, port=0)
    )
    worker = Worker(config, engine=engine)
    shutdown = Shutdown()
    running = asyncio.create_task(worker.run(shutdown), name="worker")

    async def stop() -> None:
        shutdown.requested.set()
        await running

    stack.push_async_callback(stop)
    while not worker.health[0]:
        if running.done():
            running.result()
        await asyncio.sleep(0.1)
    (process,) = multiprocessing.active_children()
    assert process.pid is not None
    pin(process.pid, core)
    return process.pid


async def _compare(stage: Stage, streams: int, args: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    jobs: Sequence[Job] = ()
    for turn in range(args.repeats):
        for way in WAYS[::-1] if turn % 2 == 0 else WAYS:
            before = {part: cpu_s(pid) for part, pid in stage.pids.items()}
            if way == "headrace":
                run = await _headrace(stage, streams, args)
                jobs = run.pop("jobs")
            else:
                run = await _bare(stage, jobs)
            used = {part: cpu_s(pid) - before[part] for part, pid in stage.pids.items()}
            run["cpu_us_per_token"] = {part: each / run["tokens"] * 1e6 for part, each in used.items()}
            runs[way].append(run)
            print(f"{streams} streams, {way}: {run['tokens_per_s']:.1f} tokens/s", file=sys.stderr)
    return {way: _medians(runs[way]) for way in WAYS}


async def _headrace(stage: Stage, streams: int, args: argparse.Namespace) -> dict[str, Any]:
    """Each stream asks once. The instructions differ from run to run: no prompt is in the engine's cache."""
    stage.runs += 1
    body = {"instructions": f"Run {stage.runs}: you are asked about a number."}
    told = await asking(
        stage.port, "ws", streams=streams, tokens=args.tokens, seconds=1.0, spread_s=0.0, body=body
    )
    answers = told["answers"]
    assert len(answers) == streams, "a stream that asked twice"
    jobs = await _jobs(stage, {answer["id"] for answer in answers})
    times = [(answer["begun_s"], answer["first_s"], answer["ended_s"]) for answer in answers]
    return {"jobs": jobs, **_speeds(times, sum(answer["tokens"] for answer in answers))}


async def _jobs(stage: Stage, wanted: set[str]) -> list[Job]:
    stored = jetstream.messages(stage.broker, subjects.JOBS, subjects.JOBS_SUBJECTS)
    return [job async for item in stored if (job := codec.decode_job(item.data)).response in wanted]


async def _bare(stage: Stage, jobs: Sequence[Job]) -> dict[str, Any]:
    """The prompts of the last run through Headrace, under another salt: nothing of them is in the cache."""
    from vllm.inputs.engine import tokens_input

    stage.runs += 1
    engine = stage.engine._engine
    assert engine is not None
    tokens = 0

    async def one(job: Job) -> tuple[float, float, float]:
        nonlocal tokens
        begun_s, first_s = time.time(), 0.0
        prompt = tokens_input(list(job.prompt_ids), cache_salt=f"bare-{stage.runs}")
        outputs = engine.generate(prompt, vllm_params(job.sampling), f"bare-{stage.runs}-{job.response}")
        async with aclosing(outputs):
            async for output in outputs:
                first_s = first_s or time.time()
                tokens += len(output.outputs[0].token_ids)
        return begun_s, first_s, time.time()

    times = await asyncio.gather(*(one(job) for job in jobs))
    return _speeds(times, tokens)


def _speeds(times: Sequence[tuple[float, float, float]], tokens: int) -> dict[str, Any]:
    """``tokens_per_s``: of all, from the first request to the last token. ``decode_tokens_per_s``: of one
    stream between its first token and its last, times their number: without the prefills that begin a run."""
    begun, _, ended = zip(*times, strict=True)
    each = tokens / len(times)
    decode = median((each - 1) / (end - start) for _, start, end in times)
    return {
        "tokens": tokens,
        "tokens_per_s": tokens / (max(ended) - min(begun)),
        "decode_tokens_per_s": decode * len(times),
        "ttft_ms": median(start - asked for asked, start, _ in times) * 1000,
    }


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: round(median(run[name] for run in runs), 1)
        for name in ("tokens_per_s", "decode_tokens_per_s", "ttft_ms")
    }
    parts = runs[0]["cpu_us_per_token"]
    found["each_tokens_per_s"] = [round(run["tokens_per_s"], 1) for run in runs]
    found["cpu_us_per_token"] = {
        part: round(median(run["cpu_us_per_token"][part] for run in runs)) for part in parts
    }
    return found


def _print(figures: Mapping[str, Any], console: Console) -> None:
    table = Table("streams", "", "tokens/s", "each run", "while decoding", "TTFT p50 ms", "of bare", "budget")
    cpu = Table("streams", "", title="CPU us a token; the engine core on one core, the rest on the other")
    sizes = [name for name in figures if name.isdigit()]
    for part in figures[sizes[0]]["bare"]["cpu_us_per_token"]:
        cpu.add_column(part)
    for streams in sizes:
        for way in WAYS:
            run = figures[streams][way]
            share = 100 * run["tokens_per_s"] / figures[streams]["bare"]["tokens_per_s"]
            budget = (f"{share:.1f} %", f"{BUDGET_PERCENT:g} %") if way == "headrace" else ("", "")
            each = " ".join(map(str, run["each_tokens_per_s"]))
            rates = (str(run["tokens_per_s"]), each, str(run["decode_tokens_per_s"]), str(run["ttft_ms"]))
            table.add_row(streams, way, *rates, *budget)
            cpu.add_row(streams, way, *map(str, run["cpu_us_per_token"].values()))
    console.print(table)
    console.print(cpu)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.real_engine", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--repeats", type=int, default=3, help="each way, in turn")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
