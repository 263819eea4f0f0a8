"""What a client deletes is gone at every gateway: while it runs, after its end, with what was kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from broker import subjects
from broker.cache import connect_redis
from broker.jetstream import messages
from broker.jobs import publish_job
from gateway.live import Live
from schemas.config import Config, Sim
from schemas.errors import HeadraceError
from schemas.ids import TenantId, new_response_id
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import TENANT, Edge, ask, configured, edge, finish, until, worker

STRANGER = TenantId("another")


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def config(nats_server: NatsServer, redis_server: RedisServer) -> Config:
    return configured(nats_server, redis_server, sim=Sim(inter_token_ms=5, mean_output_tokens=0))


@pytest.fixture
async def two(config: Config, tmp_path: Path) -> AsyncIterator[tuple[Edge, Edge]]:
    async with edge(config, tmp_path) as one, edge(config, tmp_path) as other, worker(config):
        await until(lambda: one.pipeline.ready()[0] and other.pipeline.ready()[0])
        yield one, other


async def is_gone(at: Edge, live: Live) -> bool:
    codes = []
    for work in (
        at.pipeline.attach(live.response_id, TENANT),
        at.pipeline.cancel(live.response_id, TENANT),
        at.pipeline.delete(live.response_id, TENANT),
        at.pipeline.submit(ask("go on", previous=live.response_id)),
    ):
        with pytest.raises(HeadraceError) as refused:
            await work
        codes.append(refused.value.code)
    return codes == [*["response_not_found"] * 3, "previous_response_not_found"]


async def stored(at: Edge, live: Live) -> list[str]:
    found = []
    for stream, subject in (
        (subjects.JOBS, subjects.job_by_response(live.response_id)),
        (subjects.REPLIES, subjects.replies_of_response(live.response_id)),
    ):
        found += [message.subject async for message in messages(at.broker, stream, subject)]
    return found


async def test_one_that_has_ended(two: tuple[Edge, Edge]) -> None:
    one, other = two
    live = await one.pipeline.submit(ask("a secret", max_tokens=5))
    kept = await one.pipeline.submit(ask("not it", max_tokens=5))
    await finish(live)
    await finish(kept)
    await finish(await other.pipeline.attach(live.response_id, TENANT))  # it is kept there, too
    await one.remembered()
    for at in two:
        with pytest.raises(HeadraceError, match="response_not_found"):
            await at.pipeline.delete(live.response_id, STRANGER)
    await other.pipeline.delete(live.response_id, TENANT)
    await until(lambda: one.pipeline.find(live.response_id, TENANT) is None)
    assert await is_gone(one, live)
    assert await is_gone(other, live)
    left = subjects.reply(live.job.gateway, live.response_id, live.job.session) + ".f"
    assert await stored(one, live) == [left]
    await finish(await one.pipeline.submit(ask("go on", previous=kept.response_id, max_tokens=5)))


async def test_one_that_runs_is_cancelled_and_leaves_nothing(two: tuple[Edge, Edge]) -> None:
    one, other = two
    live = await one.pipeline.submit(ask("a secret", max_tokens=2000, conversation="c"))
    await until(lambda: live.total > 5)
    await other.pipeline.delete(live.response_id, TENANT)
    _, end = await finish(live)
    assert end.outcome == "cancelled"
    await one.remembered()
    assert await is_gone(one, live)
    assert await is_gone(other, live)
    assert await one.pipeline.conversations.recall(TENANT, "c") is None
    await finish(await one.pipeline.submit(ask("anew", max_tokens=5, conversation="c")))


async def test_without_redis_it_is_refused(two: tuple[Edge, Edge], redis_server: RedisServer) -> None:
    one, _ = two
    live = await one.pipeline.submit(ask("a secret", max_tokens=5))
    await finish(live)
    redis_server.kill()
    with pytest.raises(HeadraceError, match="context_unavailable"):
        await one.pipeline.delete(live.response_id, TENANT)
    redis_server.start()
    await one.pipeline.delete(live.response_id, TENANT)
    assert await is_gone(one, live)


async def test_deleting_does_not_make_the_queue_forget_what_was_published(two: tuple[Edge, Edge]) -> None:
    """A publish whose ack was lost is tried again, and must be found then."""
    one, _ = two
    first = await one.pipeline.submit(ask("x", max_tokens=5))
    second = await one.pipeline.submit(ask("y", max_tokens=5))
    await asyncio.gather(finish(first), finish(second))
    await one.pipeline.delete(first.response_id, TENANT)
    again = await publish_job(one.broker, second.job)
    assert again.duplicate


async def test_a_gateway_that_was_cut_off_forgets_what_it_kept(
    config: Config, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with edge(config, tmp_path) as one, worker(config):
        await until(lambda: one.pipeline.ready()[0])
        live = await one.pipeline.submit(ask("a secret", max_tokens=5))
        await finish(live)
        await one.remembered()
        assert one.pipeline.find(live.response_id, TENANT) is not None
        nats_server.kill()
        await until(lambda: not one.broker.connected)
        with nats_server.elsewhere() as moved:
            there = msgspec.structs.replace(config, nats=moved)
            async with edge(there, tmp_path) as other:
                await other.pipeline.delete(live.response_id, TENANT)
        nats_server.start()
        await until(lambda: one.broker.connected)
        await until(lambda: one.pipeline.find(live.response_id, TENANT) is None)
        with pytest.raises(HeadraceError, match="response_not_found"):
            await one.pipeline.attach(live.response_id, TENANT)


async def test_a_conversation_is_forgotten(two: tuple[Edge, Edge]) -> None:
    one, other = two
    memory, there = one.pipeline.conversations, other.pipeline.conversations
    for turn in ("I am Ada.", "Who am I?"):
        last = await one.pipeline.submit(ask(turn, conversation="c", max_tokens=5))
        await finish(last)
    await one.remembered()
    recalled = await there.recall(TENANT, "c")
    assert recalled is not None
    assert [turn.said[0][1] for turn in recalled.turns] == ["I am Ada.", "Who am I?"]
    assert recalled.turns[1].response == last.response_id
    assert recalled.created_unix_ms > 0
    assert await there.recall(STRANGER, "c") is None
    assert not await there.forget(STRANGER, "c")
    running = await one.pipeline.submit(ask("And now?", conversation="c", max_tokens=100))
    assert await there.forget(TENANT, "c")
    await finish(running)
    await one.remembered()
    assert await memory.recall(TENANT, "c") is None  # the turn in flight did not bring it back
    assert not await memory.forget(TENANT, "c")


async def test_the_context_is_gone_from_redis(two: tuple[Edge, Edge], config: Config) -> None:
    one, _ = two
    live = await one.pipeline.submit(ask("a secret", max_tokens=5))
    await finish(live)
    await one.remembered()
    await one.pipeline.delete(live.response_id, TENANT)
    redis = connect_redis(config.redis)
    values = [await redis.get(key) async for key in redis.scan_iter("hr:*")]
    await redis.aclose()
    assert values == [b""]
    with pytest.raises(HeadraceError, match="response_not_found"):
        await one.pipeline.delete(new_response_id(), TENANT)
