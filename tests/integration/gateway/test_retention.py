"""A stream that is full drops its oldest messages: nothing may be accepted that would push out what runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from broker import jetstream, subjects
from broker.connection import Broker
from broker.retention import Retention, retention
from gateway.pipeline import Pipeline
from schemas.config import Gateway, Sim
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, SessionToken, new_response_id
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import ask, configured, edge, finish, until, worker

MAX_BYTES = 1 << 20
OTHER = GatewayId("gw-other")
SIM = Sim(inter_token_ms=5, prefill_base_ms=1, mean_output_tokens=0)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


async def fill(broker: Broker, share: float) -> None:
    """Until so much of REPLIES is full."""
    while (await retention(broker, subjects.REPLIES)).fill < share:
        subject = subjects.reply(OTHER, new_response_id(), SessionToken("s"))
        await jetstream.publish(broker, f"{subject}.t", bytes(16 << 10))


async def refusal(pipeline: Pipeline) -> HeadraceError | None:
    try:
        await finish(await pipeline.submit(ask("hello", max_tokens=1)))
    except HeadraceError as error:
        return error
    return None


async def test_a_full_stream_refuses_what_would_push_out_a_running_log(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = configured(nats_server, redis_server, sim=SIM, gateway=Gateway(deadline_s=300))
    nats = msgspec.structs.replace(config.nats, replies_max_bytes=MAX_BYTES)
    config = msgspec.structs.replace(config, nats=nats)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        runs = await here.pipeline.submit(ask("a long one", max_tokens=400))
        await until(lambda: runs.started)
        await fill(here.broker, 0.85)
        async with asyncio.timeout(20):
            while (refused := await refusal(here.pipeline)) is None:
                await asyncio.sleep(0.05)
        assert refused.code == "storage_full"
        assert refused.retry_after_s == 60
        text, end = await finish(runs)
        assert (end.outcome, text) == ("incomplete", here.oracle(runs, (await here.tokenizer()).detokenizer))
        await jetstream.purge(here.broker, subjects.REPLIES, f"hr.reply.{OTHER}.>")
        async with asyncio.timeout(20):
            while await refusal(here.pipeline) is not None:
                await asyncio.sleep(0.05)


async def test_a_full_stream_that_reaches_back_far_enough_is_as_it_should_be(broker: Broker) -> None:
    assert await retention(broker, subjects.REPLIES) == Retention()
    await jetstream.publish(broker, "hr.reply.gw.resp.s.t", bytes(1000))
    held = await retention(broker, subjects.REPLIES)
    assert 0 < held.fill < 0.001
    assert 0 <= held.reach_s < 60
    assert Retention(fill=1.0, reach_s=599).is_squeezed(600, full=0.8)
    assert Retention(fill=0.8, reach_s=0).is_squeezed(600, full=0.8)
    assert not Retention(fill=1.0, reach_s=600).is_squeezed(600, full=0.8)
    assert not Retention(fill=0.79, reach_s=1).is_squeezed(600, full=0.8)
