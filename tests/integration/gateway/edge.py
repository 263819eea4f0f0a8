"""A pipeline and a simulated worker on real servers, in one process; and what tests ask of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from broker import topology
from broker.cache import connect_redis
from broker.connection import Broker
from broker.process import Shutdown
from broker.tokenizers import fetch_tokenizer
from gateway.generation import Api, ChatMessage, Ended, Generation, Text
from gateway.live import Live, now_ms
from gateway.pipeline import Pipeline
from gateway.text import Detokenizer
from gateway.tokenizer import ChatTokenizer
from schemas.config import Cache, Config, Gateway, Nats, Redis, Security, Sim, Worker
from schemas.ids import ResponseId, TenantId
from schemas.sampling import Sampling
from tests.integration.conftest import NatsServer, RedisServer
from workers.engine.sim_sequence import expected_completion
from workers.worker import Worker as WorkerProcess

TENANT = TenantId("local")
ALONE = Cache(enabled=False)  # tests of other things ask the same again, and want it generated


@dataclass
class Edge:
    config: Config
    broker: Broker
    pipeline: Pipeline
    folder: Path

    async def tokenizer(self) -> ChatTokenizer:
        card = self.pipeline.models()[0]
        folder = await fetch_tokenizer(self.broker, card.tokenizer, self.folder / "tokenizers")
        return ChatTokenizer.load(folder)

    async def remembered(self) -> None:
        """Until nothing is in flight and every turn that ended is stored."""
        await until(lambda: self.pipeline.quiet)

    def oracle(self, live: Live, detokenizer: Detokenizer) -> str:
        ids, _ = expected_completion(
            live.job.prompt_ids,
            live.job.sampling,
            mean_output_tokens=self.config.sim.mean_output_tokens,
            max_model_len=self.config.sim.max_model_len,
        )
        return detokenizer.decode(ids)


def configured(
    nats: NatsServer,
    redis: RedisServer,
    *,
    gateway: Gateway | None = None,
    cache: Cache = ALONE,
    sim: Sim | None = None,
    ack_wait_s: float = 15,
) -> Config:
    return Config(
        nats=Nats(url=nats.url, ack_wait_s=ack_wait_s),
        redis=Redis(url=redis.url, timeout_s=0.3),
        security=Security(secret="a secret of sixteen characters"),
        gateway=gateway or Gateway(),
        cache=cache,
        worker=Worker(engine="sim", port=0, presence_interval_s=0.5, drain_s=1),
        sim=sim or Sim(inter_token_ms=1, prefill_base_ms=1, prefill_us_per_token=1, mean_output_tokens=60),
    )


@contextlib.asynccontextmanager
async def edge(config: Config, folder: Path) -> AsyncIterator[Edge]:
    """A pipeline without workers."""
    broker = await Broker.connect(config.nats, name="gateway")
    redis = connect_redis(config.redis)
    try:
        await topology.apply(broker)
        pipeline = Pipeline(config, broker, redis)
        running = asyncio.create_task(pipeline.run(), name="pipeline")
        try:
            yield Edge(config, broker, pipeline, folder)
            assert not running.done(), running
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    finally:
        await redis.aclose()
        await broker.close()


@contextlib.asynccontextmanager
async def worker(config: Config) -> AsyncIterator[None]:
    shutdown = Shutdown()
    running = asyncio.create_task(WorkerProcess(config).run(shutdown), name="worker")
    try:
        yield
        assert not running.done(), running
    finally:
        shutdown.requested.set()
        await running


async def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


def ask(
    text: str,
    *,
    api: Api = "responses",
    max_tokens: int = 400,
    stop: Sequence[str] = (),
    conversation: str | None = None,
    previous: str | None = None,
    system: str | None = None,
    deadline_s: float | None = None,
    tenant: TenantId = TENANT,
    model: str = "",
    **sampling: object,
) -> Generation:
    messages = [ChatMessage("user", text)]
    if system is not None:
        messages.insert(0, ChatMessage("system", system))
    return Generation(
        api=api,
        tenant=tenant,
        model=model,
        messages=tuple(messages),
        sampling=msgspec.convert({"max_tokens": max_tokens, "temperature": 0.0, **sampling}, Sampling),
        stop=tuple(stop),
        conversation=conversation,
        previous_response_id=ResponseId(previous) if previous else None,
        deadline_s=deadline_s,
        received_unix_ms=now_ms(),
    )


async def finish(live: Live, limit_s: float = 30) -> tuple[str, Ended]:
    """All text a reader from the start is given, and the end."""
    reader = live.reader()
    text, ends = "", []
    try:
        async with asyncio.timeout(limit_s):
            while updates := await reader.next():
                text += "".join(update.text for update in updates if isinstance(update, Text))
                ends += [update for update in updates if isinstance(update, Ended)]
    finally:
        reader.close()
    (end,) = ends
    return text, end
