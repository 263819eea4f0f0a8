"""Following one log against a real server: the same messages as are stored, whenever one joins."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from broker import jetstream, subjects
from broker.connection import Broker
from broker.follow import MAX_WAITING, LogFollower
from broker.replylog import ReplyLog
from schemas.ids import ResponseId, new_response_id
from schemas.reply import Finished, ReplyMessage
from tests.integration.broker.samples import (
    GATEWAY,
    SESSION,
    make_started,
    make_tokens,
    until,
    write_by_the_rules,
)
from tests.integration.conftest import NatsServer


class Seen:
    def __init__(self) -> None:
        self.messages: list[tuple[int, ReplyMessage, float]] = []

    def take(self, seq: int, message: ReplyMessage, stored_unix_ms: float) -> None:
        self.messages.append((seq, message, stored_unix_ms))

    @property
    def seqs(self) -> list[int]:
        return [seq for seq, _, _ in self.messages]

    @property
    def ended(self) -> bool:
        return bool(self.messages) and isinstance(self.messages[-1][1], Finished)


@contextlib.asynccontextmanager
async def following(broker: Broker, response: ResponseId) -> AsyncIterator[Seen]:
    seen = Seen()
    follower = LogFollower(broker, GATEWAY, response, SESSION, asyncio.Semaphore(4), on_message=seen.take)
    task = asyncio.create_task(follower.run())
    try:
        async with asyncio.timeout(20):
            await follower.caught_up.wait()
        yield seen
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def stored(broker: Broker, response: ResponseId) -> list[tuple[int, float]]:
    found = jetstream.messages(broker, "REPLIES", subjects.replies_of_response(response))
    return [(item.seq, item.stored_unix_ms) async for item in found]


async def test_all_that_is_stored_comes_once_and_in_order_whenever_one_joins(
    broker: Broker, nats_server: NatsServer
) -> None:
    response = new_response_id()
    async with contextlib.AsyncExitStack() as stack:
        writer_broker = await Broker.connect(broker.config, name="writer")
        stack.push_async_callback(writer_broker.close)
        reply_log = ReplyLog(writer_broker, GATEWAY, response, SESSION)
        followers = [await stack.enter_async_context(following(broker, response))]  # before there is a log
        writing = asyncio.create_task(write_by_the_rules(writer_broker, reply_log, 2000))
        for joined in range(300, 1300, 200):
            await until(lambda joined=joined: len(followers[0].messages) > joined)  # type: ignore[misc]
            if joined in (500, 900):
                nats_server.restart()
            followers.append(await stack.enter_async_context(following(broker, response)))
        async with asyncio.timeout(60):
            await writing
        followers.append(await stack.enter_async_context(following(broker, response)))  # after the end
        await until(lambda: all(seen.ended for seen in followers))
        truth = await stored(broker, response)
        for seen in followers:
            assert seen.seqs == [seq for seq, _ in truth]
            times = [at for _, _, at in seen.messages]
            assert times == pytest.approx([at for _, at in truth], rel=0, abs=0.01)
    assert broker.epoch == 2


async def test_what_the_subscription_misses_is_read(broker: Broker) -> None:
    """The republished copy of a Started, of tokens, and of the last message of all is never delivered."""
    response = new_response_id()
    reply_log = ReplyLog(broker, GATEWAY, response, SESSION)
    async with following(broker, response) as seen:
        deaf = [sub for sub in broker.nc._subs.values() if sub.subject == subjects.live_of_response(response)]
        assert len(deaf) == 1
        deliver = deaf[0]._cb

        async def nothing(_: object) -> None: ...

        async def miss_one(write_one: asyncio.Future[object] | object) -> None:
            deaf[0]._cb = nothing
            await write_one  # type: ignore[misc]
            await asyncio.sleep(0.05)
            deaf[0]._cb = deliver

        claim = await reply_log.claim(make_started())
        await until(lambda: len(seen.messages) == 1)
        assert claim.fence is not None
        await miss_one(reply_log.send_tokens_confirmed(make_tokens(claim.fence, 0, 7), 1.0))
        await reply_log.send_tokens(make_tokens(claim.fence, 1, 8))
        await until(lambda: len(seen.messages) == 3)
        await miss_one(reply_log.claim(make_started("w-2")))
        lease = await reply_log.lease()
        assert lease is not None
        await reply_log.send_tokens(make_tokens(claim.fence.__class__(lease[0]), 2, 9))
        await until(lambda: len(seen.messages) == 5)
        await miss_one(reply_log.send_tokens_confirmed(make_tokens(claim.fence, 3, 10), 1.0))
        await until(lambda: len(seen.messages) == 6)  # nothing follows that would show the gap
        assert seen.seqs == [seq for seq, _ in await stored(broker, response)]


async def test_a_log_that_grows_faster_than_it_is_read(broker: Broker) -> None:
    response = new_response_id()
    reply_log = ReplyLog(broker, GATEWAY, response, SESSION)
    claim = await reply_log.claim(make_started())
    assert claim.fence is not None
    for offset in range(3 * MAX_WAITING):
        await reply_log.send_tokens(make_tokens(claim.fence, offset, offset))
    seen = Seen()
    follower = LogFollower(broker, GATEWAY, response, SESSION, asyncio.Semaphore(4), on_message=seen.take)
    task = asyncio.create_task(follower.run())
    for offset in range(3 * MAX_WAITING, 6 * MAX_WAITING):
        await reply_log.send_tokens(make_tokens(claim.fence, offset, offset))
        if offset % 100 == 0:
            await asyncio.sleep(0)
    await until(lambda: len(seen.messages) == 6 * MAX_WAITING + 1)
    assert seen.seqs == [seq for seq, _ in await stored(broker, response)]
    task.cancel()
