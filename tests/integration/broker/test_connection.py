"""The connection itself: requests that fail at the right moment, closing that never hangs."""

from __future__ import annotations

import asyncio
import time

import pytest

from broker.connection import Broker, BrokerUnavailable, NoAnswer
from schemas.config import Nats
from tests.integration.broker.samples import until
from tests.integration.conftest import NatsServer


async def test_nobody_listens(broker: Broker) -> None:
    with pytest.raises(NoAnswer) as caught:
        await broker.request("no.such.service")
    assert caught.value.why == "no_responders"
    assert caught.value.code == "broker_unavailable"


async def test_no_answer_in_time(broker: Broker) -> None:
    await broker.nc.subscribe("mute")
    with pytest.raises(NoAnswer) as caught:
        await broker.request("mute", timeout_s=0.1)
    assert caught.value.why == "timeout"


async def test_a_request_fails_when_the_connection_breaks(broker: Broker, nats_server: NatsServer) -> None:
    await broker.nc.subscribe("mute")
    asking = asyncio.create_task(broker.request("mute", timeout_s=30))
    await until(lambda: len(broker._waiting) == 1)
    nats_server.kill()
    began = time.monotonic()
    with pytest.raises(NoAnswer) as caught:
        await asking
    assert caught.value.why == "disconnected"
    assert time.monotonic() - began < 2
    with pytest.raises(NoAnswer):
        await broker.request("mute", timeout_s=30)
    assert not broker._waiting


async def test_reconnecting_counts_epochs_and_tells(broker: Broker, nats_server: NatsServer) -> None:
    told: list[int] = []
    broker.on_reconnect(lambda: told.append(broker.epoch))
    for epoch in (1, 2):
        nats_server.kill()
        await until(lambda: not broker.connected)
        nats_server.restart()
        async with asyncio.timeout(5):
            await broker.wait_connected()
        await until(lambda epoch=epoch: broker.epoch == epoch)  # type: ignore[misc]
        assert (await broker.request("$JS.API.INFO")).data
    assert told == [1, 2]


async def test_closed_tells_only_of_the_end(broker: Broker, nats_server: NatsServer) -> None:
    watching = asyncio.create_task(broker.closed())
    nats_server.kill()
    await until(lambda: not broker.connected)
    nats_server.restart()
    await until(lambda: broker.connected)
    assert not watching.done()
    await broker.close()
    async with asyncio.timeout(1):
        await watching  # our own close is no failure


async def test_closing_writes_out_what_is_pending(broker: Broker, nats_server: NatsServer) -> None:
    other = await Broker.connect(nats_server.config, name="other")
    received = await broker.nc.subscribe("last.words")
    await broker.request("$JS.API.INFO")
    for _ in range(100):
        await other.nc.publish("last.words", b"x" * 1000)
    await other.close()
    for _ in range(100):
        await received.next_msg(timeout=5)


async def test_closing_a_hanging_connection_ends(broker: Broker, nats_server: NatsServer) -> None:
    nats_server.pause()
    began = time.monotonic()
    await broker.close()
    assert time.monotonic() - began < 5


async def test_refused_credentials_are_told_at_once(nats_server: NatsServer) -> None:
    config = nats_server.config
    text = 'authorization { user: "u", password: "p" }\n'
    (nats_server.folder / "nats.conf").write_text((nats_server.folder / "nats.conf").read_text() + text)
    nats_server.restart()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="refuses these credentials"):
        await Broker.connect(config, name="test")
    assert time.monotonic() - began < 5
    good = await Broker.connect(Nats(url=config.url, user="u", password="p"), name="test")
    assert good.connected
    await good.close()
