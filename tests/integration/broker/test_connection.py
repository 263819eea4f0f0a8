"""The connection itself: requests that fail at the right moment, closing that never hangs."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import pytest

from broker.connection import Broker, BrokerUnavailable, NoAnswer
from schemas.config import Nats
from schemas.errors import HeadraceError
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


@pytest.mark.parametrize(
    "message",
    [
        b"PUB odd.\xff\xfe 4\r\nodd!\r\n",
        b"HPUB odd.status 16 20\r\nNATS/1.0 \xff\xfe\xfd\r\n\r\nodd!\r\n",
        b"HPUB odd.short 8 12\r\nNATS/1.0odd!\r\n",
        b"HPUB odd.value 20 24\r\nNATS/1.0\r\na: \xff\xfe\xfd\r\n\r\nodd!\r\n",
    ],
)
async def test_what_is_not_text_is_received_like_the_rest(broker: Broker, message: bytes) -> None:
    """The server passes on what it is given; nats-py's read loop must outlive it."""
    received = await broker.nc.subscribe("odd.*")
    await broker.request("$JS.API.INFO")
    _publish_raw(broker, message)
    assert (await received.next_msg(timeout=5)).data == b"odd!"
    assert (await broker.request("$JS.API.INFO")).data


def _publish_raw(broker: Broker, message: bytes) -> None:
    url = broker.nc.connected_url
    assert url is not None
    with socket.create_connection((url.hostname, url.port or 4222), timeout=5) as connection:
        connection.recv(4096)
        connection.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n' + message + b"PING\r\n")
        assert connection.recv(4096) == b"PONG\r\n"


async def test_what_is_too_large_with_its_headers_is_refused_before_it_is_sent(broker: Broker) -> None:
    """The server would close the connection for it."""
    limit = broker.nc.max_payload
    headers = {"Nats-Msg-Id": "x" * 100}
    for payload in (b"x" * (limit + 1), b"x" * (limit - 100)):
        with pytest.raises(HeadraceError) as caught:
            await broker.request("hr.dead.m.r", payload, headers=headers)
        assert caught.value.code == "payload_too_large"
    exact = limit - len(b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n") - 100
    assert b'"DEAD"' in (await broker.request("hr.dead.m.r", b"x" * exact, headers=headers)).data
    assert broker.epoch == 0


async def test_no_log_line_holds_a_password(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    text = 'authorization { user: "bob", password: "hunter2" }\n'
    (nats_server.folder / "nats.conf").write_text((nats_server.folder / "nats.conf").read_text() + text)
    nats_server.restart()
    host = f"127.0.0.1:{nats_server.port}"
    broker = await Broker.connect(Nats(url=f"nats://bob:hunter2@{host}"), name="test")
    nats_server.kill()
    await until(lambda: not broker.connected)
    nats_server.restart()
    await until(lambda: broker.connected)
    await broker.close()
    assert f"reconnected to NATS at {host}" in caplog.messages
    assert "hunter2" not in caplog.text
    with pytest.raises(BrokerUnavailable, match="refuses these credentials") as refused:
        await Broker.connect(Nats(url=f"nats://bob:wrong2@{host}"), name="test")
    assert "wrong2" not in str(refused.value)
    nats_server.kill()
    with pytest.raises(BrokerUnavailable, match="no NATS server at") as absent:
        await Broker.connect(Nats(url=f"nats://bob:hunter2@{host}"), name="test", wait_s=0.3)
    assert "hunter2" not in str(absent.value)
    assert host in str(absent.value)


@pytest.mark.parametrize("url", ["nats://bob:hun/ter2@127.0.0.1:4222", "nats://127.0.0.1:port"])
async def test_a_bad_address_is_told_at_once(url: str) -> None:
    with pytest.raises(BrokerUnavailable, match=r"nats\.url must be like") as caught:
        await Broker.connect(Nats(url=url), name="test")
    assert "ter2" not in str(caught.value)
