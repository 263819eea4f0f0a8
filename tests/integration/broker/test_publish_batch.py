"""Many messages in one piece are the same messages, in the same order, and each may ask for its ack."""

from __future__ import annotations

import asyncio

import nats.errors
import pytest
from nats.aio.msg import Msg

from broker import jetstream, subjects
from broker.connection import Broker
from broker.jetstream import ApiError, read_ack
from broker.publish_batch import PublishBatch, command_of
from tests.integration.conftest import NatsServer

LIMIT_S = 10


async def test_all_are_stored_in_order_and_the_acks_come(broker: Broker) -> None:
    acks: asyncio.Queue[Msg] = asyncio.Queue()
    batch = PublishBatch(broker)
    commands = [command_of(f"hr.reply.gw.resp{n}.s.t") for n in range(3)]
    for n in range(300):
        batch.add(commands[n % 3], b"%d" % n, broker.expect(acks.put_nowait) if n in (7, 299) else "")
    await batch.send()
    assert batch.size == 0
    async with asyncio.timeout(LIMIT_S):
        assert [read_ack(await acks.get()).seq for _ in range(2)] == [8, 300]
    stored = [item async for item in jetstream.messages(broker, subjects.REPLIES, "hr.reply.gw.>")]
    assert [int(item.data) for item in stored] == list(range(300))
    assert [item.subject for item in stored[:3]] == [f"hr.reply.gw.resp{n}.s.t" for n in range(3)]


async def test_what_follows_stands_behind(broker: Broker) -> None:
    batch = PublishBatch(broker)
    batch.add(command_of("hr.reply.gw.resp.s.t"), b"first")
    await batch.send()
    ack = await jetstream.publish(broker, "hr.reply.gw.resp.s.f", b"second")
    assert ack.seq == 2


async def test_a_message_that_the_server_would_hang_up_on_is_refused(broker: Broker) -> None:
    batch = PublishBatch(broker)
    with pytest.raises(nats.errors.MaxPayloadError):
        batch.add(command_of("hr.reply.gw.resp.s.t"), bytes(broker.nc.max_payload + 1))


async def test_what_nobody_stores_is_told(broker: Broker) -> None:
    answered: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
    batch = PublishBatch(broker)
    batch.add(command_of("nobody.stores.this"), b"", broker.expect(answered.set_result))
    await batch.send()
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ApiError):
            read_ack(await answered)


async def test_a_broken_connection_answers_nothing_and_takes_nothing(
    broker: Broker, nats_server: NatsServer
) -> None:
    answers: list[Msg] = []
    batch = PublishBatch(broker)
    inbox = broker.expect(answers.append)
    nats_server.kill()
    async with asyncio.timeout(LIMIT_S):
        while broker.connected:
            await asyncio.sleep(0.01)
    batch.add(command_of("hr.reply.gw.resp.s.t"), b"lost")
    await batch.send()
    nats_server.start()
    async with asyncio.timeout(LIMIT_S):
        await broker.wait_connected()
    await broker.nc.publish(inbox, b"too late")
    ack = await jetstream.publish(broker, "hr.reply.gw.resp.s.t", b"later")
    assert ack.seq == 1
    assert answers == []
