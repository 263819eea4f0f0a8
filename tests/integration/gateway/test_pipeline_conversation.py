"""Memory over turns: exact ids, one turn at a time, a gateway that dies, and Redis that is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.cache import connect_redis
from broker.metrics import REDIS_DEGRADED
from broker.replylog import ReplyLog
from gateway.live import Live
from schemas.config import Config, Gateway, Sim
from schemas.errors import HeadraceError
from schemas.ids import TenantId, new_response_id
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import TENANT, Edge, ask, configured, edge, finish, until, worker


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def config(nats_server: NatsServer, redis_server: RedisServer) -> Config:
    sim = Sim(inter_token_ms=2, prefill_base_ms=1, prefill_us_per_token=1, mean_output_tokens=30)
    return configured(nats_server, redis_server, sim=sim)


@pytest.fixture
async def here(config: Config, tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge(config, tmp_path) as found, worker(config):
        await until(lambda: found.pipeline.ready()[0])
        yield found


async def said(here: Edge, live: Live) -> str:
    return (await here.tokenizer()).detokenizer.decode(live.job.prompt_ids)


async def test_a_named_conversation_extends_ids_exactly(here: Edge) -> None:
    before: tuple[int, ...] = ()
    sessions = set()
    for n in range(4):
        live = await here.pipeline.submit(ask(f"turn {n} 你好", conversation="c1", min_tokens=3))
        assert live.job.presentation.memory == "on"
        assert live.job.prompt_ids[: len(before)] == before
        assert len(live.job.prompt_ids) > len(before)
        await finish(live)  # and ask on at once: the turn may not be in Redis yet
        before = (*live.job.prompt_ids, *live.ids)
        sessions.add(live.job.session)
    assert len(sessions) == 1
    stranger = await here.pipeline.submit(ask("hello", conversation="c1", tenant=TenantId("another")))
    assert "turn" not in await said(here, stranger)
    assert stranger.job.session not in sessions
    await finish(stranger)


async def test_previous_response_id_branches(here: Edge) -> None:
    root = await here.pipeline.submit(ask("My name is Ada.", min_tokens=3))
    await finish(root)
    branches = [
        await here.pipeline.submit(ask(f"branch {n}", previous=root.response_id, min_tokens=3))
        for n in range(2)
    ]
    start = (*root.job.prompt_ids, *root.ids)
    for n, branch in enumerate(branches):
        await finish(branch)
        assert branch.job.prompt_ids[: len(start)] == start
        assert f"branch {n}" in await said(here, branch)
        assert f"branch {1 - n}" not in await said(here, branch)
        assert branch.job.session == root.job.session
    deeper = await here.pipeline.submit(ask("deeper", previous=branches[0].response_id))
    assert deeper.job.prompt_ids[: len(branches[0].job.prompt_ids)] == branches[0].job.prompt_ids
    await finish(deeper)
    for unknown, tenant in ((new_response_id(), TENANT), (root.response_id, TenantId("another"))):
        with pytest.raises(HeadraceError, match="previous_response_not_found"):
            await here.pipeline.submit(ask("x", previous=unknown, tenant=tenant))


async def test_one_turn_at_a_time(here: Edge) -> None:
    outcomes = await asyncio.gather(
        *(here.pipeline.submit(ask(f"at once {n}", conversation="busy", min_tokens=40)) for n in range(5)),
        return_exceptions=True,
    )
    lives = [outcome for outcome in outcomes if isinstance(outcome, Live)]
    refused = [outcome.code for outcome in outcomes if isinstance(outcome, HeadraceError)]
    assert len(lives) == 1
    assert refused == ["conversation_busy"] * 4
    with pytest.raises(HeadraceError, match="conversation_busy"):
        await here.pipeline.submit(ask("next", previous=lives[0].response_id))
    await finish(lives[0])
    await finish(await here.pipeline.submit(ask("next", conversation="busy")))


async def test_one_turn_at_a_time_over_two_gateways(here: Edge, config: Config, tmp_path: Path) -> None:
    async with edge(config, tmp_path) as other:
        await until(lambda: other.pipeline.ready()[0])
        turn = ask("at once", conversation="c", min_tokens=40)
        outcomes = await asyncio.gather(
            *(at.pipeline.submit(turn) for at in [here, other] * 3),
            return_exceptions=True,
        )
        (live,) = [outcome for outcome in outcomes if isinstance(outcome, Live)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, HeadraceError)]
        assert [error.code for error in refused] == ["conversation_busy"] * 5
        assert refused[0].message.startswith("The conversation's last turn is still being answered")
        await finish(live)
        await here.remembered()
        await other.remembered()
        for at in (here, other):
            await finish(await at.pipeline.submit(ask("next", conversation="c")))
            await at.remembered()


async def test_a_refused_turn_gives_the_conversation_back(here: Edge) -> None:
    with pytest.raises(HeadraceError, match="context_length_exceeded"):
        await here.pipeline.submit(ask("word " * 40_000, conversation="refused"))
    await here.remembered()
    async with edge(here.config, here.folder) as other:
        await until(lambda: other.pipeline.ready()[0])
        await finish(await other.pipeline.submit(ask("short", conversation="refused")))


async def test_a_dead_gateways_turn_is_folded_in(here: Edge, config: Config, tmp_path: Path) -> None:
    async with edge(config, tmp_path) as doomed:
        await until(lambda: doomed.pipeline.ready()[0])
        live = await doomed.pipeline.submit(
            ask("I am Ada.", system="Be kind.", conversation="c2", min_tokens=150, max_tokens=160)
        )
        alone = await doomed.pipeline.submit(ask("I am Bob.", min_tokens=150, max_tokens=160))
        await until(lambda: live.total > 2 and alone.total > 2)
        assert live.end is None
    with pytest.raises(HeadraceError, match="conversation_busy"):
        await here.pipeline.submit(ask("Who am I?", conversation="c2"))
    with pytest.raises(HeadraceError, match="conversation_busy"):
        await here.pipeline.submit(ask("Who am I?", previous=alone.response_id))
    ids = [await ids_once_ended(here, each) for each in (live, alone)]
    next_turn = await here.pipeline.submit(ask("Who am I?", conversation="c2"))
    assert next_turn.job.prompt_ids[: len(ids[0])] == ids[0]
    following = await here.pipeline.submit(ask("Who am I?", previous=alone.response_id))
    assert following.job.prompt_ids[: len(ids[1])] == ids[1]
    await finish(next_turn)
    await finish(following)


async def ids_once_ended(here: Edge, live: Live) -> tuple[int, ...]:
    log = ReplyLog(here.broker, live.job.gateway, live.response_id, live.job.session)
    async with asyncio.timeout(20):
        while (ended := await log.read()).end is None:
            await asyncio.sleep(0.05)
    return (*live.job.prompt_ids, *ended.ids)


async def test_redis_killed_and_back(here: Edge, redis_server: RedisServer) -> None:
    first = await here.pipeline.submit(ask("remember", conversation="c3"))
    await finish(first)
    await here.remembered()
    redis_server.kill()
    without = await here.pipeline.submit(ask("do you?", conversation="c3"))
    assert without.job.presentation.memory == "unavailable"
    _, end = await finish(without)
    assert end.outcome in ("completed", "incomplete")
    assert "remember" not in await said(here, without)
    assert REDIS_DEGRADED._value.get() == 1
    with pytest.raises(HeadraceError, match="context_unavailable"):
        await here.pipeline.submit(ask("x", previous=first.response_id))
    assert (await here.pipeline.submit(ask("no memory wanted"))).job.presentation.memory == "none"
    redis_server.restart()
    async with asyncio.timeout(10):
        while True:
            live = await here.pipeline.submit(ask("anew", conversation="c4"))
            await finish(live)
            if live.job.presentation.memory == "on":
                break
    # its context went with Redis, and is read again from the job and its log
    recovered = await here.pipeline.submit(ask("still there?", previous=first.response_id))
    assert recovered.job.prompt_ids[: len(first.job.prompt_ids)] == first.job.prompt_ids
    assert REDIS_DEGRADED._value.get() == 0
    await finish(recovered)


async def test_redis_hangs(here: Edge, redis_server: RedisServer) -> None:
    redis_server.pause()
    began_s = asyncio.get_running_loop().time()
    live = await here.pipeline.submit(ask("anyone?", conversation="c5"))
    assert live.job.presentation.memory == "unavailable"
    assert asyncio.get_running_loop().time() - began_s < 3
    again_s = asyncio.get_running_loop().time()
    await here.pipeline.submit(ask("anyone else?", conversation="c6"))
    assert asyncio.get_running_loop().time() - again_s < 0.25  # left alone for a while: no timeout again
    await finish(live)


async def test_rounds_and_time_to_live(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    sim = Sim(inter_token_ms=1, prefill_base_ms=1, mean_output_tokens=10)
    limits = Gateway(conversation_rounds=2, conversation_ttl_s=600)
    config = configured(nats_server, redis_server, sim=sim, gateway=limits)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        for n in range(5):
            live = await here.pipeline.submit(ask(f"turn {n}", conversation="zebra", min_tokens=2))
            await finish(live)
        text = await said(here, live)
        assert [f"turn {n}" in text for n in range(5)] == [False, False, True, True, True]
        await here.remembered()
        redis = connect_redis(config.redis)
        keys = [key async for key in redis.scan_iter("hr:*")]
        assert not [key for key in keys if b"zebra" in key or b"local" in key]
        assert [590 < await redis.ttl(key) <= 600 for key in keys] == [True] * 6  # the name, five responses
        await redis.aclose()
