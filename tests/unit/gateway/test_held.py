"""The beginning of an answer on its way out."""

from __future__ import annotations

import asyncio

from gateway.held import Held, HeldHead

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False
        self.news = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self.written.append(bytes(data))
        self.news.set()

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def test_a_head_goes_with_what_follows_it() -> None:
    wire = Wire()
    held = HeldHead(wire)
    for _ in range(2):  # two answers over one connection
        held.write(HEAD)
        held.write(b"2\r\nhi\r\n")
        held.write(b"0\r\n\r\n")
    assert wire.written == [HEAD + b"2\r\nhi\r\n", b"0\r\n\r\n"] * 2


async def test_a_head_that_nothing_follows_goes_alone() -> None:
    wire = Wire()
    held = HeldHead(wire)
    held.write(HEAD)
    assert wire.written == []
    await wire.news.wait()
    held.write(b"2\r\nhi\r\n")
    assert wire.written == [HEAD, b"2\r\nhi\r\n"]


async def test_what_a_client_waits_for_is_not_held() -> None:
    wire = Wire()
    held = HeldHead(wire)
    for line in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 429 Too Many Requests\r\n"):
        held.write(line)
        assert wire.written.pop() == line


async def test_a_connection_that_is_closed_loses_no_head() -> None:
    wire = Wire()
    held = HeldHead(wire)
    held.write(HEAD)
    held.close()
    assert wire.written == [HEAD]
    assert held.is_closing()


async def test_nothing_is_written_to_a_connection_that_is_gone() -> None:
    wire = Wire()
    held = HeldHead(wire)
    held.write(HEAD)
    wire.closed = True
    held.close()
    assert wire.written == []


async def test_what_is_held_goes_in_its_order_with_what_is_written() -> None:
    wire = Wire()
    held = Held(wire)
    held.hold(b"created ")
    held.hold(b"queued ")
    held.write(b"text")
    held.write(b"more")
    assert wire.written == [b"created queued text", b"more"]


async def test_head_and_first_events_go_together() -> None:
    wire = Wire()
    held = HeldHead(wire)
    held.write(HEAD)
    held.hold(b"created ")
    held.write(b"text")
    assert wire.written == [HEAD + b"created text"]


async def test_what_nothing_follows_goes_alone() -> None:
    wire = Wire()
    held = Held(wire)
    held.hold(b"created ")
    held.hold(b"queued ")
    await wire.news.wait()
    assert wire.written == [b"created queued "]
