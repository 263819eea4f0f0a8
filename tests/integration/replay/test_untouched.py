"""A replay leaves no trace where a client's requests do: conversations, cached answers, limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from broker.cache import connect_redis
from gateway.generation import ChatMessage
from schemas.config import Cache
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import TENANT, ask, configured, edge, finish, until, worker
from tests.integration.replay.commands import Commands


async def contents(redis: Redis) -> dict[bytes, bytes | None]:
    """All there is, but for the time that is left to it."""
    keys = [key async for key in redis.scan_iter()]
    return {key: await redis.dump(key) for key in keys}


async def test_redis_and_the_conversation_are_as_before(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(nats_server, redis_server, cache=Cache(enabled=True))
    redis = connect_redis(config.redis)
    try:
        async with edge(config, tmp_path) as one, worker(config):
            await until(lambda: one.pipeline.ready()[0])
            commands = Commands(one.broker, config, capsys)
            first = await one.pipeline.submit(ask("Hello", conversation="c", max_tokens=20))
            await finish(first)
            await one.remembered()
            second = await one.pipeline.submit(ask("And then?", conversation="c", max_tokens=20))
            await finish(second)
            await one.remembered()
            before = await contents(redis)
            assert before
            done = await commands.replay("--since", "1h", "--json", "-")
            assert done.code == 0, done.err
            assert done.json["summary"]["same"] == 2
            again = {copy.replay_of: copy for copy in await commands.copies()}
            shown = await one.pipeline.attach(again[second.response_id].response, TENANT)
            assert shown.ids == second.ids, "its tenant can get it"
            await one.remembered()
            assert await contents(redis) == before
            remembered = await one.pipeline.conversations.recall(TENANT, "c")
            assert remembered is not None
            assert [message.role for message in remembered.messages()] == ["user", "assistant"] * 2
            assert ChatMessage("user", "And then?") in remembered.messages()
    finally:
        await redis.aclose()
