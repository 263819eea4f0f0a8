"""The simulated engine by itself, driven as ``tests.bench.streams`` drives the pipeline: what is to be
compared with. A process of its own (``bare`` starts it); prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from schemas.config import Sim
from schemas.ids import ResponseId
from schemas.sampling import Sampling
from workers.engine.base import Delta, EngineRequest
from workers.engine.sim import SimEngine

PROMPT = tuple(range(300, 330))


class Bare:
    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._engine: SimEngine
        self._begun_s: dict[ResponseId, float] = {}
        self._asked = 0
        self._tokens = 0
        self._first_ms: list[float] = []
        self._clock = time.perf_counter

    async def run(self, folder: Path) -> dict[str, Any]:
        args = self._args
        sim = msgspec.convert(json.loads(args.sim), Sim)
        self._engine = SimEngine(sim, hang_timeout_s=60, tokenizers_dir=folder)
        await self._engine.start(self._on_step)
        for _ in range(args.streams):
            self._ask()
            await asyncio.sleep(args.spread_s / args.streams)
        await asyncio.sleep(args.warm_s)
        self._first_ms.clear()
        cpu_s, begun_s, tokens = time.process_time(), self._clock(), self._tokens
        await asyncio.sleep(args.seconds)
        cpu_s, wall_s = time.process_time() - cpu_s, self._clock() - begun_s
        tokens = self._tokens - tokens
        await self._engine.close()
        return {
            "first_ms": self._first_ms,
            "tokens_per_s": tokens / wall_s,
            "cpu_us_per_token": cpu_s / max(1, tokens) * 1e6,
        }

    def _ask(self) -> None:
        self._asked += 1
        request = ResponseId(f"resp_{self._asked}")
        self._begun_s[request] = self._clock()
        sampling = Sampling(max_tokens=self._args.tokens, ignore_eos=True)
        self._engine.submit(EngineRequest(request, (*PROMPT, self._asked), sampling))

    def _on_step(self, deltas: list[Delta]) -> None:
        self._tokens += len(deltas)
        for delta in deltas:
            if delta.request_id in self._begun_s:
                begun_s = self._begun_s.pop(delta.request_id)
                self._first_ms.append((self._clock() - begun_s) * 1000)
            if delta.end is not None:
                self._ask()


async def bare(
    sim: Mapping[str, object],
    *,
    streams: int,
    tokens: int,
    seconds: float,
    spread_s: float = 0.0,
    warm_s: float = 0.5,
) -> dict[str, Any]:
    """``sim``: keys of the section of the same name."""
    settings = {
        "streams": streams,
        "tokens": tokens,
        "seconds": seconds,
        "spread-s": spread_s,
        "warm-s": warm_s,
    }
    command = [sys.executable, "-m", "tests.bench.bare_engine", json.dumps(dict(sim))]
    command += [f"--{name}={value}" for name, value in settings.items()]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the bare engine ended with {process.returncode}")
    told: dict[str, Any] = json.loads(out)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bare_engine", description=__doc__)
    parser.add_argument("sim", help="JSON: the [sim] section")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--spread-s", type=float, default=0.0)
    parser.add_argument("--warm-s", type=float, default=0.5)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        print(json.dumps(runner.run(Bare(args).run(Path(folder)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
