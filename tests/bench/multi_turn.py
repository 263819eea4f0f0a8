"""``python -m tests.bench.multi_turn``: conversations on the real engine, and what its prefix cache does for
their later turns.

Two ways, the same questions, in turn: *continued*, as a named conversation, whose ids Headrace keeps and
extends; and *sent again*, as any OpenAI client asks a stateless server, with all messages in each request,
whose text is encoded anew. Answers are drawn (temperature 0.8), so that text and ids need not be the same.
With ``--no-prefix-cache`` the engine keeps nothing, which is the cost of both ways without it. One worker and
one gateway; the hit ratio is read from the engine's own counters.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

from tests.bench.layout import gateway, servers, until_answers
from tests.bench.program import carry_out
from tests.integration.conftest import free_port
from tests.integration.gateway.processes import Process

LOAD_LIMIT_S = 170.0  # of the engine
WAYS = ("continued", "sent again")
GUIDE = "You are a guide to the rivers of the world, their mills, canals, boats, bridges, towns and birds. "
THINGS = ("mills", "canals", "boats", "bridges", "towns", "birds", "floods", "dams", "ferries", "springs")
_COUNTER = re.compile(r"^vllm:prefix_cache_(queries|hits)_total{.*} (\S+)$", re.M)


def main() -> int:
    args = _arguments()
    return carry_out(_run(args), _print, args)


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            nats, redis = await servers(stack, folder)
            port = free_port()
            environ = {
                "HEADRACE_NATS__URL": nats.url,
                "HEADRACE_WORKER__MODEL": args.model,
                "HEADRACE_WORKER__PORT": str(port),
                "HEADRACE_VLLM__ENABLE_PREFIX_CACHING": str(not args.no_prefix_cache).lower(),
            }
            worker = Process("workers.guardian", folder / "worker.log", environ)
            stack.push_async_callback(asyncio.to_thread, worker.end)
            engine = f"http://127.0.0.1:{port}"
            await until_answers(f"{engine}/healthz", {200}, LOAD_LIMIT_S)
            _, edge = await gateway(stack, folder, nats.url, redis.url)
            client = AsyncOpenAI(base_url=f"http://127.0.0.1:{edge}/v1", api_key="none", max_retries=0)
            stack.push_async_callback(client.close)
            model = (await client.models.list()).data[0].id
            talk = _Talk(client, model, engine, args)
            for way in WAYS:
                await talk.answers(way, f"warm-up {way}", turns=1)
            turns: dict[str, list[list[dict[str, float]]]] = {way: [] for way in WAYS}
            for number in range(args.conversations):
                for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                    turns[way].append(await talk.answers(way, f"{way} {number}", turns=args.turns))
            figures["ways"] = {way: _by_turn(found) for way, found in turns.items()}
    return figures


class _Talk:
    def __init__(self, client: AsyncOpenAI, model: str, engine: str, args: argparse.Namespace) -> None:
        self._client = client
        self._model = model
        self._engine = engine
        self._args = args

    async def answers(self, way: str, name: str, *, turns: int) -> list[dict[str, float]]:
        """One conversation. The instructions differ by ``name``: nothing of others is in the cache."""
        guide = f"This is the conversation {name}. {GUIDE * self._args.instructions}"
        told: list[dict[str, str]] = [{"role": "system", "content": guide}]
        found = []
        for turn in range(turns):
            asked = f"Tell me a long story about the {THINGS[turn % len(THINGS)]} of the river."
            told.append({"role": "user", "content": asked})
            before, begun_s = await self._counters(), time.perf_counter()
            pieces = self._continued(name, told) if way == "continued" else self._sent_again(told)
            text, first_s = "", 0.0
            async for piece in pieces:
                first_s = first_s or time.perf_counter()
                text += piece
            after = await self._counters()
            told.append({"role": "assistant", "content": text})
            found.append(
                {
                    "ttft_ms": (first_s - begun_s) * 1000,
                    **{what: after[what] - before[what] for what in before},
                }
            )
        return found

    async def _continued(self, name: str, told: Sequence[Mapping[str, str]]) -> AsyncIterator[str]:
        """Only what is new is sent."""
        events = await self._client.responses.create(
            model=self._model,
            input=told[-1]["content"],
            instructions=told[0]["content"],
            conversation=name.replace(" ", "-"),
            temperature=0.8,
            max_output_tokens=self._args.tokens,
            stream=True,
        )
        async for event in events:
            if event.type == "response.output_text.delta":
                yield event.delta

    async def _sent_again(self, told: Sequence[Mapping[str, str]]) -> AsyncIterator[str]:
        chunks: Any = await self._client.chat.completions.create(
            model=self._model,
            messages=list(told),  # type: ignore[arg-type]  # a TypedDict for each role
            temperature=0.8,
            max_tokens=self._args.tokens,
            stream=True,
        )
        async for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    async def _counters(self) -> dict[str, float]:
        """Of the engine, in prompt tokens: looked up in its prefix cache, and found there."""
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"{self._engine}/metrics")).text
        return {"queries": 0.0, "hits": 0.0} | {kind: float(value) for kind, value in _COUNTER.findall(text)}


def _by_turn(conversations: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Medians over the conversations; the ratio is of their sums."""
    found = []
    for runs in zip(*conversations, strict=True):
        queries = sum(run["queries"] for run in runs)
        found.append(
            {
                "ttft_ms": round(median(run["ttft_ms"] for run in runs)),
                "prompt_tokens": round(queries / len(runs)),
                "computed_tokens": round((queries - sum(run["hits"] for run in runs)) / len(runs)),
                "hit_percent": round(100 * sum(run["hits"] for run in runs) / queries, 1) if queries else 0.0,
            }
        )
    return found


def _print(figures: Mapping[str, Any], console: Console) -> None:
    table = Table(
        *("turn", "", "prompt tokens", "of them computed", "prefix cache hits", "TTFT ms, p50"),
        title="a conversation's turns on the real engine",
    )
    for turn, rows in enumerate(zip(*figures["ways"].values(), strict=True), 1):
        for way, row in zip(figures["ways"], rows, strict=True):
            shown = (str(row["prompt_tokens"]), str(row["computed_tokens"]), f"{row['hit_percent']} %")
            table.add_row(str(turn), way, *shown, str(row["ttft_ms"]))
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.multi_turn", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--conversations", type=int, default=2, help="each way, in turn")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=40, help="of an answer, at most")
    parser.add_argument(
        "--instructions", type=int, default=10, help="sentences at the beginning, of 21 tokens"
    )
    parser.add_argument("--no-prefix-cache", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
