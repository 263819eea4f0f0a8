"""Drives a simulated engine in a test: submits, collects what each request gets, waits for its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from schemas.config import Sim
from schemas.ids import ResponseId
from schemas.sampling import Sampling
from workers.engine.base import Delta, EngineRequest, RequestEnd
from workers.engine.sim import SimEngine


class EngineRun:
    def __init__(self, sim: Sim, tokenizers_dir: Path, hang_timeout_s: float = 30) -> None:
        self.engine = SimEngine(sim, hang_timeout_s=hang_timeout_s, tokenizers_dir=tokenizers_dir)
        self.steps: list[list[Delta]] = []
        self.ids: dict[ResponseId, list[int]] = {}
        self.logprobs: dict[ResponseId, list[object]] = {}
        self.ends: dict[ResponseId, RequestEnd] = {}
        self.end_order: list[ResponseId] = []
        self._news = asyncio.Event()

    def on_step(self, deltas: list[Delta]) -> None:
        self.steps.append(deltas)
        for delta in deltas:
            self.ids.setdefault(delta.request_id, []).extend(delta.ids)
            self.logprobs.setdefault(delta.request_id, []).extend(delta.logprobs or ())
            if delta.end is not None:
                assert delta.request_id not in self.ends
                self.ends[delta.request_id] = delta.end
                self.end_order.append(delta.request_id)
        self._news.set()

    def submit(
        self,
        name: str,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        prior_ids: Sequence[int] = (),
        priority: int = 0,
    ) -> ResponseId:
        request_id = ResponseId(name)
        self.engine.submit(EngineRequest(request_id, prompt_ids, sampling, prior_ids, priority))
        return request_id

    async def until_ended(self, *names: ResponseId) -> None:
        while not set(names) <= self.ends.keys():
            await self.step()

    async def step(self) -> None:
        self._news.clear()
        await self._news.wait()
