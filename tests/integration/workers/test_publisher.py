"""The publisher on a real broker: one message where one will do, and everything arrives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from broker.connection import Broker
from broker.log_writer import LogWriter
from broker.replylog import ReplyLog
from schemas.ids import Fence, GatewayId, ModelToken, SessionToken, WorkerId, new_response_id
from schemas.reply import Started
from tests.integration.conftest import NatsServer
from tests.integration.workers.farm import stop_task, until
from workers.publisher import Outlet, Publisher


@contextlib.asynccontextmanager
async def publishing(broker: Broker, *, confirm_interval_s: float = 60) -> AsyncIterator[Publisher]:
    publisher = Publisher(broker, ModelToken("m"), confirm_interval_s=confirm_interval_s)
    running = asyncio.create_task(publisher.run())
    try:
        yield publisher
        assert not running.done(), running.result()
    finally:
        await stop_task(running)


async def open_outlet(broker: Broker, publisher: Publisher) -> Outlet:
    log = ReplyLog(broker, GatewayId("gw"), new_response_id(), SessionToken("s"))
    claim = await log.claim(lambda n: Started(attempt=n, worker=WorkerId("w")))
    assert claim.fence is not None
    return publisher.open(log, LogWriter(Fence(claim.fence)), pulled_s=asyncio.get_running_loop().time())


async def messages_of(broker: Broker, outlet: Outlet) -> int:
    info = await broker.js.stream_info("REPLIES", subjects_filter=outlet.log.tokens_subject)
    return (info.state.subjects or {}).get(outlet.log.tokens_subject, 0)


async def test_steps_that_pile_up_share_a_message(broker: Broker) -> None:
    async with publishing(broker) as publisher:
        outlet = await open_outlet(broker, publisher)
        for token in range(50):  # no await: the publisher cannot run in between
            outlet.writer.append((token,))
            publisher.mark(outlet)
        await until(lambda: outlet.writer.unsent == 0)
        async with asyncio.timeout(10):
            while (await outlet.log.read()).ids != list(range(50)):
                await asyncio.sleep(0.01)
        assert await messages_of(broker, outlet) == 1


async def test_steps_that_do_not_pile_up_travel_alone(broker: Broker) -> None:
    async with publishing(broker) as publisher:
        outlet = await open_outlet(broker, publisher)
        for token in range(20):
            outlet.writer.append((token,))
            publisher.mark(outlet)
            await until(lambda: outlet.writer.unsent == 0)
        async with asyncio.timeout(10):
            while len((await outlet.log.read()).ids) < 20:
                await asyncio.sleep(0.01)
        assert await messages_of(broker, outlet) == 20


async def test_confirmed_now_and_then_and_in_order(broker: Broker) -> None:
    async with publishing(broker, confirm_interval_s=0.02) as publisher:
        outlets = [await open_outlet(broker, publisher) for _ in range(8)]
        for token in range(300):
            for outlet in outlets:
                outlet.writer.append((token,))
                publisher.mark(outlet)
            await asyncio.sleep(0.001)
        for outlet in outlets:
            await until(lambda outlet=outlet: not outlet.confirming and not outlet.writer.unsent)  # type: ignore[misc]
            async with asyncio.timeout(10):
                while (await outlet.log.read()).ids != list(range(300)):  # an overtaken one would be a gap
                    await asyncio.sleep(0.01)
            outlet.writer.rewind()
            assert outlet.writer.unsent < 300, "acks were asked for on the way"


async def test_a_broker_that_dies_and_comes_back_gets_everything(
    broker: Broker, nats_server: NatsServer
) -> None:
    async with publishing(broker, confirm_interval_s=0.05) as publisher:
        outlet = await open_outlet(broker, publisher)
        for token in range(600):
            outlet.writer.append((token,))
            publisher.mark(outlet)
            if token == 100:
                nats_server.pause()  # what is sent from here on stays in the socket, and dies with the server
            if token == 200:
                nats_server.kill()
            if token == 400:
                nats_server.start()
            await asyncio.sleep(0.001)
        async with asyncio.timeout(20):
            await broker.wait_connected()
            while (await outlet.log.read()).ids != list(range(600)):
                await asyncio.sleep(0.02)


async def test_a_broker_that_lags_gets_fewer_messages(broker: Broker, nats_server: NatsServer) -> None:
    async with publishing(broker, confirm_interval_s=0.01) as publisher:
        outlet = await open_outlet(broker, publisher)

        async def generate(token: int) -> None:
            outlet.writer.append((token,))
            publisher.mark(outlet)
            for _ in range(5):  # the publisher runs in between, unless it pauses
                await asyncio.sleep(0)

        async def one_confirmed(token: int, late_s: float) -> None:
            await asyncio.sleep(0.02)  # longer than between two messages that ask
            await generate(token)
            await until(lambda: outlet.confirming)
            await asyncio.sleep(late_s)
            nats_server.resume()
            await until(lambda: not outlet.confirming)

        await one_confirmed(0, 0.0)
        nats_server.pause()
        await one_confirmed(1, 0.5)
        before = await messages_of(broker, outlet)
        for token in range(2, 22):
            await generate(token)
        async with asyncio.timeout(10):
            while (await outlet.log.read()).ids != list(range(22)):
                await asyncio.sleep(0.01)
        assert await messages_of(broker, outlet) - before < 10


async def test_an_ack_that_never_comes_has_the_tokens_sent_again(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.publisher.CONFIRM_TIMEOUT_S", 0.1)
    async with publishing(broker, confirm_interval_s=0.01) as publisher:
        outlet = await open_outlet(broker, publisher)
        nats_server.pause()
        for token in range(3):
            outlet.writer.append((token,))
            publisher.mark(outlet)
            await until(lambda: outlet.writer.unsent == 0)
        await until(lambda: outlet.confirming)
        asked_s = outlet.asked_s
        await until(lambda: outlet.asked_s > asked_s)
        nats_server.resume()
        async with asyncio.timeout(10):
            while (await outlet.log.read()).ids != [0, 1, 2]:
                await asyncio.sleep(0.01)
        assert await messages_of(broker, outlet) > 3


async def test_closed_outlet_sends_nothing_more(broker: Broker) -> None:
    async with publishing(broker) as publisher:
        closed, other = await open_outlet(broker, publisher), await open_outlet(broker, publisher)
        for outlet in (closed, other):
            outlet.writer.append((1,))
            publisher.mark(outlet)
        publisher.close(closed)
        async with asyncio.timeout(10):
            while not (await other.log.read()).ids:
                await asyncio.sleep(0.01)
        assert (await closed.log.read()).ids == []
