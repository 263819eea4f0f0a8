"""The tail against a real server: every message in stored order, once, whatever happens to the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from broker import jetstream, metrics
from broker.connection import Broker
from broker.replylog import ReplyLog
from broker.tail import ReplyTail
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ResponseId, new_response_id
from schemas.reply import Finished, ReplyMessage, Started
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
        self.messages: list[tuple[ResponseId, int, ReplyMessage]] = []

    def take(self, response: ResponseId, seq: int, message: ReplyMessage, stored_unix_ms: float) -> None:
        self.messages.append((response, seq, message))

    @property
    def seqs(self) -> list[int]:
        return [seq for _, seq, _ in self.messages]


@contextlib.asynccontextmanager
async def tailing(broker: Broker, seen: Seen) -> AsyncIterator[ReplyTail]:
    tail = ReplyTail(broker, GATEWAY, on_message=seen.take)
    task = asyncio.create_task(tail.run())
    try:
        async with asyncio.timeout(10):
            await tail.ready.wait()
        yield tail
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def stored_seqs(broker: Broker) -> list[int]:
    while True:
        try:
            return [m.seq async for m in jetstream.messages(broker, "REPLIES", f"hr.reply.{GATEWAY}.>")]
        except HeadraceError:
            await broker.wait_connected()


async def test_messages_come_in_order_and_of_this_gateway_only(broker: Broker) -> None:
    seen = Seen()
    response = new_response_id()
    async with tailing(broker, seen):
        await ReplyLog(broker, GatewayId("gw-other"), new_response_id(), SESSION).claim(make_started())
        reply_log = ReplyLog(broker, GATEWAY, response, SESSION)
        claim = await reply_log.claim(make_started())
        assert claim.fence is not None
        for offset in range(5000):  # more than one batch
            await reply_log.send_tokens(make_tokens(claim.fence, offset, offset))
        await until(lambda: len(seen.messages) == 5001)
    assert isinstance(seen.messages[0][2], Started)
    assert {r for r, _, _ in seen.messages} == {response}
    assert [m.offset for _, _, m in seen.messages[1:]] == list(range(5000))  # type: ignore[union-attr]
    assert seen.seqs == await stored_seqs(broker)


async def test_what_was_stored_before_the_tail_began_comes_too(broker: Broker) -> None:
    await ReplyLog(broker, GATEWAY, new_response_id(), SESSION).claim(make_started())
    seen = Seen()
    async with tailing(broker, seen):
        await until(lambda: len(seen.messages) == 1)


async def test_no_gap_and_no_duplicate_over_server_restarts(broker: Broker, nats_server: NatsServer) -> None:
    """A writer streams by the rules (confirm now and then, rewind after a break) while the server is
    killed three times; the tail sees exactly what is stored, and the log adds up."""
    seen = Seen()
    writer_broker = await Broker.connect(broker.config, name="writer")
    reply_log = ReplyLog(writer_broker, GATEWAY, new_response_id(), SESSION)
    total = 3000

    try:
        async with tailing(broker, seen):
            writing = asyncio.create_task(write_by_the_rules(writer_broker, reply_log, total))
            for part in (1, 2, 3):
                await until(lambda part=part: len(seen.messages) > part * 300)  # type: ignore[misc]
                nats_server.kill()
                nats_server.restart()
                await until(lambda: broker.connected)
            async with asyncio.timeout(60):
                await writing
            await until(lambda: isinstance(seen.messages[-1][2], Finished))
        assert broker.epoch == 3
        assert seen.seqs == await stored_seqs(broker)
        assert (await reply_log.read()).ids == list(range(total))
    finally:
        await writer_broker.close()


async def test_a_hanging_server_costs_no_message(broker: Broker, nats_server: NatsServer) -> None:
    seen = Seen()
    reply_log = ReplyLog(broker, GATEWAY, new_response_id(), SESSION)
    resets = metrics.PULL_RESETS.labels(reason="silence")._value
    before = resets.get()
    async with tailing(broker, seen):
        claim = await reply_log.claim(make_started())
        assert claim.fence is not None
        await until(lambda: len(seen.messages) == 1)
        nats_server.pause()
        await until(lambda: resets.get() > before)
        for offset in range(100):
            await reply_log.send_tokens(make_tokens(claim.fence, offset, offset))
        nats_server.resume()
        await until(lambda: len(seen.messages) == 101)
    assert broker.epoch == 0
    assert seen.seqs == await stored_seqs(broker)


async def test_a_deleted_consumer_is_made_again(broker: Broker) -> None:
    seen = Seen()
    reply_log = ReplyLog(broker, GATEWAY, new_response_id(), SESSION)
    async with tailing(broker, seen):
        claim = await reply_log.claim(make_started())
        assert claim.fence is not None
        await until(lambda: len(seen.messages) == 1)
        names = (await jetstream.call(broker, "CONSUMER.NAMES.REPLIES", b"", dict))["consumers"]
        assert len(names) == 1
        await jetstream.call(broker, f"CONSUMER.DELETE.REPLIES.{names[0]}", b"", msgspec.Raw)
        await reply_log.send_tokens(make_tokens(claim.fence, 0, 1))
        await until(lambda: len(seen.messages) == 2)
    assert seen.seqs == await stored_seqs(broker)


async def test_a_gap_is_read_again(broker: Broker) -> None:
    """A delivery that never arrives shows in the next one's consumer sequence."""
    seen = Seen()
    reply_log = ReplyLog(broker, GATEWAY, new_response_id(), SESSION)
    gaps = metrics.TAIL_GAPS._value.get()
    async with tailing(broker, seen) as tail:
        claim = await reply_log.claim(make_started())
        assert claim.fence is not None
        await until(lambda: len(seen.messages) == 1)
        stolen = f"$JS.API.CONSUMER.MSG.NEXT.REPLIES.{tail._loop.consumer}"
        thief = await broker.nc.subscribe("thief")
        await broker.nc.publish(stolen, b'{"batch": 3}', reply="thief")
        for offset in range(4000):  # used up our pull, the thief gets some of these
            await reply_log.send_tokens(make_tokens(claim.fence, offset, offset))
        await until(lambda: len(seen.messages) == 4001)
        await thief.next_msg(timeout=5)
    assert seen.seqs == await stored_seqs(broker)
    assert metrics.TAIL_GAPS._value.get() > gaps


async def test_undecodable_messages_do_not_stop_it(broker: Broker) -> None:
    seen = Seen()
    async with tailing(broker, seen):
        await jetstream.publish(broker, f"hr.reply.{GATEWAY}.r.s.t", b"\xc1")
        await ReplyLog(broker, GATEWAY, new_response_id(), SESSION).claim(make_started())
        await until(lambda: len(seen.messages) == 1)


async def test_an_exception_in_the_callback_ends_run(broker: Broker) -> None:
    def refuse(response: ResponseId, seq: int, message: ReplyMessage, stored_unix_ms: float) -> None:
        raise RuntimeError("bug")

    tail = ReplyTail(broker, GATEWAY, on_message=refuse)
    await ReplyLog(broker, GATEWAY, new_response_id(), SESSION).claim(make_started())
    with pytest.raises(RuntimeError, match="bug"):
        async with asyncio.timeout(10):
            await tail.run()
