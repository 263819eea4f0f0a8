"""What goes out over a socket at once, and what waits until the client has room."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketState

from gateway.api.sockets import TOGETHER_BYTES, Socket


class Wire:
    """An outlet that is full after some writes; then the long way, which has room again."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.writes: list[tuple[bytes, ...]] = []
        self.held: list[tuple[bytes, ...]] = []

    @property
    def is_open(self) -> bool:
        return len(self.writes) < self.takes

    def put(self, *data: bytes) -> None:
        self.writes.append(data)

    def hold(self, *data: bytes) -> None:
        self.held.append(data)

    async def send(self, message: Message) -> None:
        self.writes.append((message["text"].encode(),))


def socket_on(wire: Wire) -> Socket:
    async def receive() -> Message:
        raise AssertionError

    websocket = WebSocket({"type": "websocket", "state": {}}, receive, wire.send)
    websocket.client_state = websocket.application_state = WebSocketState.CONNECTED
    socket = Socket(websocket, 1 << 20)
    socket.outlet = wire
    return socket


async def test_small_messages_are_one_write() -> None:
    wire = Wire(takes=10)
    await socket_on(wire).send_all([b"a", b"b", b"c"])
    assert wire.writes == [(b"a", b"b", b"c")]
    await socket_on(wire).send_all(())
    assert len(wire.writes) == 1


async def test_what_is_not_urgent_is_held() -> None:
    wire = Wire(takes=10)
    await socket_on(wire).send_all([b"a", b"b"], urgent=False)
    assert (wire.held, wire.writes) == ([(b"a", b"b")], [])


async def test_large_messages_are_made_one_by_one_and_wait_for_room() -> None:
    wire, made = Wire(takes=2), []

    def large() -> Iterator[bytes]:
        for n in range(4):
            made.append(len(wire.writes))
            yield b"%d" % n * TOGETHER_BYTES

    await socket_on(wire).send_all(large())
    assert made == [0, 1, 2, 3], "each was asked for when those before it had gone"
    assert [write[0][:1] for write in wire.writes] == [b"0", b"1", b"2", b"3"]
