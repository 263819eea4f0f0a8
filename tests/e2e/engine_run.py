"""Drives a vLLM engine in a test: submits, collects what each request gets, waits for ends. Run as a
program (``python -m tests.e2e.engine_run FOLDER``) it starts an engine, says so, and stays until killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Callable, Sequence

from schemas.ids import ResponseId
from schemas.reply import TokenLogprobs
from schemas.sampling import Sampling
from workers.engine.base import Delta, EngineInfo, EngineLoad, EngineRequest, RequestEnd
from workers.engine.vllm import VllmEngine
from workers.models import resolve


class EngineRun:
    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.info: EngineInfo
        self.core: int  # process id of the engine core
        self.steps: list[list[Delta]] = []
        self.ids: dict[ResponseId, list[int]] = {}
        self.logprobs: dict[ResponseId, list[TokenLogprobs]] = {}
        self.ends: dict[ResponseId, RequestEnd] = {}
        self._news = asyncio.Event()
        self._count = 0

    async def start(self) -> EngineRun:
        others = cores()
        self.info = await self.engine.start(self.on_step)
        [self.core] = cores() - others
        return self

    def on_step(self, deltas: list[Delta]) -> None:
        self.steps.append(deltas)
        for delta in deltas:
            self.ids.setdefault(delta.request_id, []).extend(delta.ids)
            self.logprobs.setdefault(delta.request_id, []).extend(delta.logprobs or ())
            if delta.end is not None:
                assert delta.request_id not in self.ends
                self.ends[delta.request_id] = delta.end
        self._news.set()

    def submit(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        prior_ids: Sequence[int] = (),
        cache_salt: str | None = None,
    ) -> ResponseId:
        self._count += 1
        request_id = ResponseId(f"resp_{self._count}")
        self.engine.submit(EngineRequest(request_id, prompt_ids, sampling, prior_ids, cache_salt=cache_salt))
        return request_id

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def until_load(self, condition: Callable[[EngineLoad], bool]) -> None:
        """The load changes without a delta too, as in a long prefill: nothing tells of it."""
        async with asyncio.timeout(60):
            while not condition(self.engine.load()):
                await asyncio.sleep(0.01)

    async def answer(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        prior_ids: Sequence[int] = (),
        cache_salt: str | None = None,
    ) -> tuple[list[int], RequestEnd]:
        request_id = self.submit(prompt_ids, sampling, prior_ids=prior_ids, cache_salt=cache_salt)
        await self.until(lambda: request_id in self.ends)
        return self.ids[request_id], self.ends[request_id]


async def _stay(folder: str) -> None:
    run = EngineRun(VllmEngine(resolve(folder), table={"kv_cache_memory_bytes": 64 << 20}))
    await run.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await run.engine.failed()


def cores() -> set[int]:
    """The processes that engines of this process have started."""
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


if __name__ == "__main__":
    asyncio.run(_stay(sys.argv[1]))
