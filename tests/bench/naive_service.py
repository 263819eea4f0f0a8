"""``python -m tests.bench.naive_service PORT``: what is often built first. One process beside the engine
answers ``POST /chat`` over HTTP/1.1 with the whole text, in static batches: whatever has arrived when the
last batch is done becomes the next one, and is answered when its longest answer is complete.

The engine, tokenizer and prompts are Headrace's own, so that only the service differs. No cache, no queue, no
stream.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.settings import load
from gateway.generation import ChatMessage
from gateway.tokenizer import ChatTokenizer
from schemas.ids import new_response_id
from schemas.sampling import Sampling
from workers.engine.base import Delta, EngineRequest, RequestEnd
from workers.engine.sim import SimEngine


class Question(msgspec.Struct, frozen=True):
    query: str
    max_tokens: int
    temperature: float = 1.0
    seed: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """Milliseconds; ``batch_ms``: from the request to the start of its batch. ``held_ms``: from its own last
    token to the end of its batch."""

    response: str
    tokens: int
    batch_ms: float
    prefill_ms: float
    decode_ms: float
    held_ms: float


@dataclass(eq=False)
class _Waiting:
    request: EngineRequest
    arrived_s: float
    ids: list[int] = field(default_factory=list)
    end: RequestEnd | None = None
    ended_s: float = 0.0
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class StaticBatches:
    def __init__(self, engine: SimEngine) -> None:
        self.arrived: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._engine = engine
        self._batch: dict[str, _Waiting] = {}
        self._running = 0
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Never returns."""
        self._engine_info = await self._engine.start(self._step)
        self.tokenizer = ChatTokenizer.load(self._engine_info.tokenizer_dir)
        clock = asyncio.get_running_loop().time
        while True:
            batch = [await self.arrived.get()]
            while not self.arrived.empty() and len(batch) < self._engine_info.slots:
                batch.append(self.arrived.get_nowait())
            began_s = clock()
            self._batch = {each.request.request_id: each for each in batch}
            self._running = len(batch)
            self._done.clear()
            for each in batch:
                self._engine.submit(each.request)
            await self._done.wait()
            done_s = clock()
            for each in batch:
                self._answer(each, began_s, done_s)

    def _step(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            waiting = self._batch[delta.request_id]
            waiting.ids += delta.ids
            if delta.end is not None:
                waiting.end = delta.end
                waiting.ended_s = asyncio.get_running_loop().time()
                self._running -= 1
                if not self._running:
                    self._done.set()

    def _answer(self, each: _Waiting, began_s: float, done_s: float) -> None:
        assert each.end is not None
        text = self.tokenizer.detokenizer.decode(each.ids)
        each.answer.set_result(
            Answer(
                text,
                len(each.ids),
                (began_s - each.arrived_s) * 1000,
                each.end.prefill_ms,
                each.end.decode_ms,
                (done_s - each.ended_s) * 1000,
            )
        )


async def serve(port: int) -> None:
    config = load(None, os.environ)
    with tempfile.TemporaryDirectory(prefix="naive-service-") as folder:
        engine = SimEngine(config.sim, hang_timeout_s=30, tokenizers_dir=Path(folder))
        batches = StaticBatches(engine)

        async def chat(request: Request) -> Response:
            arrived_s = asyncio.get_running_loop().time()
            question = msgspec.json.decode(await request.body(), type=Question)
            tokenizer = batches.tokenizer
            prompt = tokenizer.encode(tokenizer.render([ChatMessage("user", question.query)]))
            sampling = Sampling(
                max_tokens=question.max_tokens, temperature=question.temperature, seed=question.seed
            )
            waiting = _Waiting(EngineRequest(new_response_id(), prompt, sampling), arrived_s)
            batches.arrived.put_nowait(waiting)
            return Response(msgspec.json.encode(await waiting.answer), media_type="application/json")

        app = Starlette(routes=[Route("/chat", chat, methods=["POST"])])
        server = uvicorn.Server(uvicorn.Config(app, port=port, loop="none", log_level="warning"))
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(batches.run(), name="static-batches")
            await server.serve()
            running.cancel()
        await engine.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
