"""Who is looked at when; and what a WebSocket makes of a beat and of what comes, without a network."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from gateway.heartbeat import SLOTS, Heartbeat
from gateway.websocket_protocol import BoundedWebSocket
from schemas.config import Gateway

LIMITS = Gateway(ping_interval_s=10, ping_timeout_s=30, idle_s=100)


class Member:
    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def beat(self, now_s: float, payload: bytes) -> None:
        self.payloads.append(payload)


async def test_each_member_once_a_turn_and_none_that_left() -> None:
    heartbeat = Heartbeat(0.001)
    stays, leaves = Member(), Member()
    heartbeat.join(stays)
    heartbeat.join(leaves)
    heartbeat.leave(leaves)
    heartbeat.leave(leaves)
    async with asyncio.timeout(30):
        while len(stays.payloads) < 3:
            await asyncio.sleep(0)
    assert leaves.payloads == []
    numbers = [int.from_bytes(payload, "big") for payload in stays.payloads]
    assert [after - before for before, after in pairwise(numbers)] == [SLOTS] * (len(numbers) - 1)


class Wire:
    """A transport that only remembers."""

    def __init__(self) -> None:
        self.sent = b""
        self.closing = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, _: str) -> None:
        return None


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await asyncio.Event().wait()


class Connection:
    """A BoundedWebSocket behind its handshake, and the other end of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        config = uvicorn.Config(_app, ws_per_message_deflate=False, log_config=None)
        config.load()
        self.heartbeat = Heartbeat(3600)
        self.server = BoundedWebSocket(LIMITS, self.heartbeat, config, ServerState(), {}, loop)
        self.began_s = time.monotonic()
        self.wire = Wire()
        self.client = ClientProtocol(parse_uri("ws://x/"))
        self.client.send_request(self.client.connect())
        self.server.connection_made(cast(asyncio.Transport, self.wire))
        self.server.data_received(b"".join(self.client.data_to_send()))
        while not self.server.handshake_complete:
            loop.run_until_complete(asyncio.sleep(0))
        self._task = next(iter(self.server.tasks))
        self.hears()

    def hears(self) -> list[Frame]:
        self.client.receive_data(self.wire.sent)
        self.wire.sent = b""
        return [event for event in self.client.events_received() if isinstance(event, Frame)]

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        self.server.connection_lost(None)
        self._task.cancel()
        loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def connection(loop: asyncio.AbstractEventLoop) -> Iterator[Connection]:
    connection = Connection(loop)
    yield connection
    connection.close(loop)


def beat(connection: Connection, now_s: float, payload: bytes = b"beat") -> None:
    connection.server.beat(connection.began_s + now_s, payload)


def test_a_ping_that_is_answered_is_followed_by_another(connection: Connection) -> None:
    for now_s in (10.0, 20.0):
        beat(connection, now_s)
        (ping,) = connection.hears()
        assert (ping.opcode, ping.data) == (Opcode.PING, b"beat")
        connection.server.data_received(b"".join(connection.client.data_to_send()))
        assert connection.server.pending_ping_payload is None


def test_one_that_is_not_answered_ends_the_connection_when_its_time_is_up(connection: Connection) -> None:
    beat(connection, 10)
    connection.hears()
    beat(connection, 20, b"more")
    beat(connection, 39, b"more")
    assert connection.hears() == []
    assert not connection.wire.closing
    beat(connection, 40, b"more")
    (close,) = connection.hears()
    assert close.opcode is Opcode.CLOSE
    assert connection.wire.closing


@pytest.mark.parametrize("pong", [b"\x8a\x84\0\0\0\0late", b"\x8a\x80\0\0\0\0", b"\x8a\x84\1\1\1\1beat"])
def test_another_pong_is_no_answer(connection: Connection, pong: bytes) -> None:
    beat(connection, 10)
    connection.server.data_received(pong)
    assert connection.server.pending_ping_payload == b"beat"
    assert not connection.wire.closing


def test_one_where_nothing_is_said_is_closed(connection: Connection) -> None:
    for now_s in (10, 50, 90, 109):  # what was said in the handshake is seen at the first
        connection.server.pending_ping_payload = None
        beat(connection, now_s)
    assert not connection.wire.closing
    connection.server.pending_ping_payload = None
    beat(connection, 110)
    assert connection.hears()[-1].opcode is Opcode.CLOSE


texts = st.text(max_size=200) | st.sampled_from(["x" * 126, "y" * 70_000])
words = st.sampled_from(["pong", "ping"]) | texts.map(lambda text: f"={text}")


@given(said=st.lists(words, max_size=8), cuts=st.lists(st.integers(0, 1 << 20), max_size=6))
def test_however_frames_are_cut_all_is_heard(
    loop: asyncio.AbstractEventLoop, said: list[str], cuts: list[int]
) -> None:
    """The short way of a pong depends on knowing where frames begin."""
    connection = Connection(loop)
    client, server = connection.client, connection.server
    expected = []
    for word in said:
        if word == "pong":
            client.send_pong(b"beat")
        elif word == "ping":
            client.send_ping(b"hark")
        else:
            client.send_text(word.encode())
            expected.append(word)
    data = b"".join(client.data_to_send())
    beat(connection, 10)
    connection.hears()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, stop in pairwise(edges):
        server.data_received(data[start:stop])
    heard = []
    while not server.queue.empty():
        message: Any = loop.run_until_complete(server.queue.get())
        heard.append(message.get("text"))
    assert heard == expected
    assert (server.pending_ping_payload is None) == ("pong" in said)
    assert [frame.opcode for frame in connection.hears()] == [Opcode.PONG] * said.count("ping")
    connection.close(loop)
