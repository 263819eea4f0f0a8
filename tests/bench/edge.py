"""``python -m tests.bench.edge``: a naive service against Headrace, over a link of 75 ms each way.

Both run the same simulated engine with the same batch size, and are asked the same questions at the same
times (Poisson arrivals, seeded). Three layouts:

- ``naive``: HTTP/1.1 with a new connection each time, static batches, the whole answer at once; the service
  and its engine are far away.
- ``headrace, far gateway``: one WebSocket kept open to a gateway that stands beside the engine, far away.
- ``headrace, near gateway``: the gateway and its cache are near the client; the queue and the engine are far.

Then one question is asked again and again, as popular questions are: temperature 0, one client at a time.
Prints tables of time to first text and to the end, and where the time went; ``--json`` writes the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from gateway.client import Client
from tests.bench.far_link import far_link
from tests.bench.layout import gateway, servers, sim_environ, sim_worker, until_answers
from tests.bench.program import carry_out
from tests.chaos.failover import percentiles
from tests.integration.conftest import free_port

NAIVE, FAR, NEAR = "naive", "headrace, far gateway", "headrace, near gateway"
POPULAR = "Why is the sky blue?"


@dataclass(frozen=True)
class Question:
    at_s: float
    text: str
    max_tokens: int
    seed: int


@dataclass
class Answered:
    """Milliseconds, on the client's clock. ``parts``: where they went, as the service tells; ``network`` is
    the rest."""

    first_text: float
    total: float
    tokens: int
    text: str
    parts: dict[str, float] = field(default_factory=dict)


Ask = Callable[[Question, float], Awaitable[Answered]]  # the question, and its temperature


def main() -> int:
    args = _arguments()
    return carry_out(_run(args), _print, args)


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    questions = list(_questions(args))
    figures: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    texts: dict[str, list[str]] = {}
    for layout, service in ((NAIVE, _naive), (FAR, _far), (NEAR, _near)):
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            async with service(Path(folder), args) as ask:
                await ask(Question(0.0, "warm up", 5, 0), 1.0)
                answers = await _at_their_times(ask, questions)
                popular = Question(0.0, POPULAR, args.tokens, 1)
                repeated = [await ask(popular, 0.0) for _ in range(args.repeats)]
        figures[layout] = {"questions": _summary(answers), "repeated": _summary(repeated[1:])}
        texts[layout] = [answer.text for answer in [*answers, *repeated]]
    assert texts[NAIVE] == texts[FAR] == texts[NEAR], "the same questions were answered differently"
    return figures


def _questions(args: argparse.Namespace) -> Sequence[Question]:
    rng = random.Random(args.seed)
    at_s = 0.0
    questions = []
    for number in range(args.questions):
        at_s += rng.expovariate(args.rate)
        length = min(4 * args.tokens, 1 + round(rng.expovariate(1 / args.tokens)))
        questions.append(Question(at_s, f"Question {number}: what is a headrace?", length, number))
    return questions


async def _at_their_times(ask: Ask, questions: Sequence[Question]) -> list[Answered]:
    """Open loop: whoever waits delays nobody's question."""
    clock = asyncio.get_running_loop().time
    begun_s = clock()

    async def one(question: Question) -> Answered:
        await asyncio.sleep(begun_s + question.at_s - clock())
        return await ask(question, 1.0)

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(one(question), name="question") for question in questions]
    return [task.result() for task in asked]


def _summary(answers: Sequence[Answered]) -> dict[str, Any]:
    names = answers[0].parts
    return {
        "first_text_ms": percentiles([answer.first_text for answer in answers]),
        "total_ms": percentiles([answer.total for answer in answers]),
        "mean_parts_ms": {name: round(fmean(answer.parts[name] for answer in answers), 1) for name in names},
        "tokens": sum(answer.tokens for answer in answers),
    }


# -- the layouts ------------------------------------------------------------------------------------


@asynccontextmanager
async def _naive(folder: Path, args: argparse.Namespace) -> AsyncIterator[Ask]:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.naive_service", str(port)]
    service = await asyncio.create_subprocess_exec(*command, env={**os.environ, **sim_environ(_sim(args))})
    try:
        await until_answers(f"http://127.0.0.1:{port}/chat", {405})
        async with far_link(port, args.delay_ms / 1000) as far:

            async def ask(question: Question, temperature: float) -> Answered:
                begun_s = time.perf_counter()
                body = {
                    "query": question.text,
                    "max_tokens": question.max_tokens,
                    "temperature": temperature,
                    "seed": question.seed,
                }
                async with httpx.AsyncClient(timeout=600, verify=False) as http:
                    answer = await http.post(f"http://127.0.0.1:{far}/chat", json=body)
                total = (time.perf_counter() - begun_s) * 1000
                told = answer.raise_for_status().json()
                names = {
                    "batch_ms": "queue",
                    "prefill_ms": "prefill",
                    "decode_ms": "decode",
                    "held_ms": "held",
                }
                parts = {part: told[name] for name, part in names.items()}
                return Answered(total, total, told["tokens"], told["response"], _and_network(parts, total))

            yield ask
    finally:
        service.terminate()
        await service.wait()


@asynccontextmanager
async def _far(folder: Path, args: argparse.Namespace) -> AsyncIterator[Ask]:
    async with AsyncExitStack() as stack:
        nats, redis = await servers(stack, folder)
        await sim_worker(stack, folder, nats, _sim(args))
        _, port = await gateway(stack, folder, nats.url, redis.url)
        far = await stack.enter_async_context(far_link(port, args.delay_ms / 1000))
        client = await stack.enter_async_context(Client([f"http://127.0.0.1:{far}"]))
        yield _asker(client)


@asynccontextmanager
async def _near(folder: Path, args: argparse.Namespace) -> AsyncIterator[Ask]:
    async with AsyncExitStack() as stack:
        nats, redis = await servers(stack, folder)
        await sim_worker(stack, folder, nats, _sim(args))
        far = await stack.enter_async_context(far_link(nats.port, args.delay_ms / 1000))
        _, port = await gateway(stack, folder, f"nats://127.0.0.1:{far}", redis.url)
        client = await stack.enter_async_context(Client([f"http://127.0.0.1:{port}"]))
        yield _asker(client)


def _sim(args: argparse.Namespace) -> Mapping[str, object]:
    return {
        "slots": args.slots,
        "inter_token_ms": args.inter_token_ms,
        "prefill_base_ms": args.prefill_ms,
        "mean_output_tokens": 0,  # lengths are the questions'
    }


def _asker(client: Client) -> Ask:
    async def ask(question: Question, temperature: float) -> Answered:
        begun_s = time.perf_counter()
        first: float | None = None
        pieces: list[str] = []
        response: Mapping[str, Any] = {}
        stream = client.stream(
            input=question.text,
            max_output_tokens=question.max_tokens,
            temperature=temperature,
            seed=question.seed,
        )
        async for event in stream:
            if event["type"] == "response.output_text.delta":
                first = first or (time.perf_counter() - begun_s) * 1000
                pieces.append(event["delta"])
            response = event.get("response", response)
        total = (time.perf_counter() - begun_s) * 1000
        timings = response["timings"]
        names = ("queue", "engine_queue", "prefill", "decode")
        told = {name: timings[f"{name}_ms"] or 0.0 for name in names}
        parts = {
            "queue": told["queue"] + told["engine_queue"],
            "prefill": told["prefill"],
            "decode": told["decode"],
            "held": 0.0,
        }
        tokens = response["usage"]["output_tokens"]
        return Answered(first or total, total, tokens, "".join(pieces), _and_network(parts, total))

    return ask


def _and_network(parts: dict[str, float], total: float) -> dict[str, float]:
    return {"network and service": total - sum(parts.values()), **parts}


# -- the tables -------------------------------------------------------------------------------------


def _print(figures: Mapping[str, Any], console: Console) -> None:
    for kind, title in (("questions", "each question once"), ("repeated", "one question, asked again")):
        table = Table("layout", "what", "p50", "p95", "p99", "max", title=f"milliseconds, {title}")
        for layout in (NAIVE, FAR, NEAR):
            for name in ("first_text_ms", "total_ms"):
                shown = "to first text" if name == "first_text_ms" else "to the end"
                first = name == "first_text_ms"
                table.add_row(layout if first else "", shown, *map(str, figures[layout][kind][name].values()))
        console.print(table)
    parts = figures[NAIVE]["questions"]["mean_parts_ms"]
    table = Table(
        "layout", *parts, title="where the time to the end went: mean milliseconds, each question once"
    )
    for layout in (NAIVE, FAR, NEAR):
        table.add_row(layout, *map(str, figures[layout]["questions"]["mean_parts_ms"].values()))
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.edge", description=__doc__)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument(
        "--repeats", type=int, default=21, help="of the popular question; the first is not counted"
    )
    parser.add_argument("--rate", type=float, default=4.0, help="questions a second")
    parser.add_argument("--tokens", type=int, default=80, help="mean length of an answer")
    parser.add_argument("--slots", type=int, default=32, help="the engine's batch size")
    parser.add_argument("--inter-token-ms", type=float, default=20.0)
    parser.add_argument("--prefill-ms", type=float, default=50.0)
    parser.add_argument("--delay-ms", type=float, default=75.0, help="of the link, each way")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
