"""``python -m tests.bench.long_prompt_http``: what one client's 100,000-token prompt does to everybody else,
end to end: the event-loop lag of a running gateway and worker, as their metrics have it, and the gaps between
the tokens of other clients' streams, with and without the prompt. On the simulated engine, which takes it in
at once: what shows is what it costs the parts around an engine. ``long_prompt`` has the single steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from tests.bench.layout import gateway, servers, sim_worker
from tests.integration.conftest import free_port

WORDS = "it was on are as with they at be this "  # each a token of the simulated engine's
LAG = "headrace_event_loop_lag_seconds_bucket"
BODY_BYTES = 4 << 20


async def run(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            nats, redis = await servers(stack, folder)
            worker_port = free_port()
            sim = {
                "slots": args.streams + 2,
                "inter_token_ms": args.inter_token_ms,
                "mean_output_tokens": 0,
                "max_model_len": 1 << 20,
                "prefill_us_per_token": 0,
            }
            extra = {"HEADRACE_WORKER__PORT": str(worker_port)}
            await sim_worker(stack, folder, nats, sim, extra)
            settings = {
                "HEADRACE_GATEWAY__MAX_MESSAGE_BYTES": str(BODY_BYTES),
                "HEADRACE_LOGGING__LOOP_LAG_MS": "5",
            }
            _, port = await gateway(stack, folder, nats.url, redis.url, settings)
            await _ask(port, args.words)  # a tokenizer's first long text takes longer
            alone = await _finished(await _others(port, args))
            before = {who: await _lags(at) for who, at in (("gateway", port), ("worker", worker_port))}
            others = await _others(port, args)
            took_s = []
            for _ in range(args.prompts):
                await asyncio.sleep(args.pause_s)
                seconds, prompt_tokens = await _ask(port, args.words)
                took_s.append(round(seconds, 2))
            if others.returncode is not None:
                raise SystemExit("the streams were over before the prompts: give them more --tokens")
            beside = await _finished(others)
            after = {who: await _lags(at) for who, at in (("gateway", port), ("worker", worker_port))}
    return {
        "prompt_tokens": prompt_tokens,
        "prompts": args.prompts,
        "prompt_to_first_token_s": took_s,
        "gap_ms_alone": alone["itl_ms"],
        "gap_ms_beside": beside["itl_ms"],
        "loop_lag_ms_at_most": {who: _largest(before[who], after[who]) for who in before},
    }


async def _others(port: int, args: argparse.Namespace) -> asyncio.subprocess.Process:
    """In a process of their own: what sends the prompts would hold them up, too."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.readers", str(port), "--surface", "sse"),
        *("--streams", str(args.streams), "--tokens", str(args.tokens)),
        stdout=asyncio.subprocess.PIPE,
    )


async def _finished(readers: asyncio.subprocess.Process) -> dict[str, Any]:
    out, _ = await readers.communicate()
    figures: dict[str, Any] = json.loads(out)
    return figures


async def _ask(port: int, words: int) -> tuple[float, int]:
    """Seconds until it was answered, and the tokens that it was."""
    body = {"input": WORDS * (words // 10) + str(time.time()), "max_output_tokens": 1, "ignore_eos": True}
    began_s = time.perf_counter()
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(f"http://127.0.0.1:{port}/v1/responses", json=body)
    answer.raise_for_status()
    return time.perf_counter() - began_s, answer.json()["usage"]["input_tokens"]


async def _lags(port: int) -> dict[float, float]:
    """How often the loop was late by at most so many seconds."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == LAG
    }


def _largest(before: dict[float, float], after: dict[float, float]) -> float:
    """The bucket of the largest since, in milliseconds."""
    grown = {bound: after[bound] - before[bound] for bound in sorted(after)}
    total = grown[float("inf")]
    return next(bound for bound, count in grown.items() if count == total) * 1000


def show(figures: dict[str, Any], console: Console) -> None:
    console.print(
        f"{figures['prompts']} prompts of {figures['prompt_tokens']} tokens, answered after "
        f"{figures['prompt_to_first_token_s']} s; event loops were late by at most (ms, a bucket's end) "
        f"{figures['loop_lag_ms_at_most']}"
    )
    gaps = Table("other streams", "p50", "p95", "p99", "max", title="milliseconds between tokens")
    gaps.add_row("alone", *map(str, figures["gap_ms_alone"].values()))
    gaps.add_row("beside the prompts", *map(str, figures["gap_ms_beside"].values()))
    console.print(gaps)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.long_prompt_http", description=__doc__)
    parser.add_argument("--words", type=int, default=100_000)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--pause-s", type=float, default=1.0)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--inter-token-ms", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    figures = uvloop.run(run(args))
    show(figures, Console(soft_wrap=True, highlight=False))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
