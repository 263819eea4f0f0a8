"""Whose turn it is in a conversation, when Redis hesitates or the asker goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis as Client

from broker.cache import connect_redis
from broker.connection import Broker
from gateway.conversation import Conversations
from gateway.generation import Api, Generation
from gateway.live import Live
from gateway.redis_health import AWAY_S, RedisHealth
from gateway.tokenizer import ChatTokenizer
from schemas.config import Redis
from schemas.errors import HeadraceError
from schemas.ids import new_response_id
from schemas.job import Job
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import Edge, ask, configured, edge, finish, until, worker

TIMEOUT_S = 0.4
TTL_S = 600


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Client]:
    client = connect_redis(Redis(url=redis_server.url, timeout_s=TIMEOUT_S))
    await client.ping()
    yield client
    await client.aclose()


@pytest.fixture
def conversations(redis: Client, broker: Broker) -> Conversations:
    async def no_tokenizer(job: Job) -> ChatTokenizer:
        raise AssertionError(job)

    async def nothing_held(job: Job) -> None:
        raise AssertionError(job)

    return Conversations(
        redis,
        RedisHealth(),
        broker,
        b"a secret of a test",
        rounds=10,
        ttl_s=TTL_S,
        tokenizer_of=no_tokenizer,
        is_live=lambda response: False,
        settle=nothing_held,
    )


def turn(name: str, api: Api = "responses") -> Generation:
    return ask("hi", conversation=name, api=api)


async def test_a_claim_whose_answer_was_lost_is_our_own(
    conversations: Conversations, redis_server: RedisServer
) -> None:
    redis_server.pause()
    # The client gives up, connects anew and sends the claim again; both are then carried out.
    asyncio.get_running_loop().call_later(1.5 * TIMEOUT_S, redis_server.resume)
    response = new_response_id()
    opened = await conversations.open(turn("c"), response)
    assert (opened.memory, opened.claimed is not None) == ("on", True)
    with pytest.raises(HeadraceError, match="conversation_busy"):
        await conversations.open(turn("c"), new_response_id())
    await conversations.abandon(turn("c"), response)
    assert (await conversations.open(turn("c"), new_response_id())).claimed


async def test_a_request_cancelled_in_its_claim_gives_the_conversation_back(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = configured(nats_server, redis_server)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        await finish(await here.pipeline.submit(ask("one", conversation="c", max_tokens=3)))
        await here.remembered()
        redis_server.pause()
        asking = asyncio.create_task(here.pipeline.submit(ask("two", conversation="c")))
        await asyncio.sleep(config.redis.timeout_s / 3)  # the claim is on its way
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        redis_server.resume()
        await here.remembered()
        live = await here.pipeline.submit(ask("three", conversation="c", max_tokens=3))  # else it is busy
        assert live.job.presentation.memory == "on"
        await finish(live)


async def test_context_and_claim_are_one_transaction(conversations: Conversations, redis: Client) -> None:
    commands: list[str] = []
    async with redis.monitor() as monitor, asyncio.timeout(10):
        await conversations.open(turn("c"), new_response_id())
        await redis.echo("the end")
        while "ECHO" not in commands:
            commands.append((await monitor.next_command())["command"].split(" ")[0])
    assert commands[-5:] == ["MULTI", "SET", "GETEX", "EXEC", "ECHO"]


async def test_users_of_the_simple_chat_have_names_of_their_own(
    conversations: Conversations, redis: Client
) -> None:
    """Whatever ``conversation`` a client of the Responses API names, it opens no user's."""
    user = new_response_id()
    opened = await conversations.open(turn("user/me", "simple"), user)
    for name in ("user/me", "simple:user/me", "me"):
        other = await conversations.open(turn(name), new_response_id())  # else it would be busy
        assert other.context.session != opened.context.session
    keys = {key async for key in redis.scan_iter("*:claim")}
    assert len(keys) == 4
    for api in ("chat", "completions"):
        with pytest.raises(HeadraceError, match="conversation_busy"):
            await conversations.open(turn("user/me", api), new_response_id())


async def test_one_request_at_a_time_asks_a_redis_that_hangs(
    conversations: Conversations, redis_server: RedisServer
) -> None:
    async def wait_of(name: str) -> float:
        began_s = time.monotonic()
        assert (await conversations.open(turn(name), new_response_id())).memory == "unavailable"
        return time.monotonic() - began_s

    redis_server.pause()
    await wait_of("first")
    await asyncio.sleep(AWAY_S)
    waits = sorted(await asyncio.gather(*(wait_of(f"c{n}") for n in range(20))))
    assert waits[-1] > TIMEOUT_S
    assert waits[-2] < TIMEOUT_S / 2
    redis_server.resume()
    await asyncio.sleep(AWAY_S)
    assert (await conversations.open(turn("back"), new_response_id())).memory == "on"
    assert (await conversations.open(turn("back too"), new_response_id())).memory == "on"


async def test_a_turn_without_memory_is_folded_in_and_forgets_nothing(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = configured(nats_server, redis_server)
    config = msgspec.structs.replace(config, redis=Redis(url=redis_server.url, timeout_s=TIMEOUT_S))
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        for text in ("I am Ada.", "I like tea."):
            await finish(await here.pipeline.submit(ask(text, conversation="c", min_tokens=3)))
        await here.remembered()
        redis_server.pause()
        without = await here.pipeline.submit(ask("Forgot me?", conversation="c", min_tokens=3))
        assert without.job.presentation.memory == "unavailable"
        redis_server.resume()  # and it sets the claim, which nobody waits for any more
        await finish(without)
        await here.remembered()
        following = await _with_memory(here, "Who am I?")
        text = (await here.tokenizer()).detokenizer.decode(following.job.prompt_ids)
        expected = ["I am Ada.", "I like tea.", "Forgot me?", "Who am I?"]
        assert [said for said in expected if said in text] == expected


async def _with_memory(here: Edge, text: str) -> Live:
    async with asyncio.timeout(10):
        while (
            live := await here.pipeline.submit(ask(text, conversation="c"))
        ).job.presentation.memory != "on":
            await finish(live)
    return live
