"""The short way through nats-py's parser gives the same messages as the long one, however they are cut."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from broker.nats_parser import ShortcutParser

TAKEN, OTHER = 7, 8
Message = tuple[int, str, bytes, bytes]  # subscription, reply, headers, payload


class Client:
    """What the parser tells nats-py's client."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.stats = {"in_msgs": 0, "in_bytes": 0}

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, hdr: bytes) -> None:
        self.heard.append((sid, subject.decode(), reply.decode(), data, hdr))
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data) + len(hdr or b"")

    async def _process_ping(self) -> None:
        self.heard.append("ping")

    async def _process_pong(self) -> None:
        self.heard.append("pong")

    async def _process_err(self, text: str) -> None:
        self.heard.append(text)

    def take(self, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        self.heard.append((TAKEN, subject, reply, data, headers or None))


def wire(operation: Message | bytes) -> bytes:
    if isinstance(operation, bytes):
        return operation
    sid, reply, headers, payload = operation
    to = f"a.b {sid} {reply} ".replace("  ", " ").encode()
    if not headers:
        return b"MSG %b%d\r\n%b\r\n" % (to, len(payload), payload)
    return b"HMSG %b%d %d\r\n%b%b\r\n" % (to, len(headers), len(headers) + len(payload), headers, payload)


messages = st.tuples(
    st.sampled_from([TAKEN, OTHER]),
    st.sampled_from(["", "$JS.ACK.x", "r" * 300]),
    st.sampled_from([b"", b"NATS/1.0 100\r\n\r\n"]),
    st.binary(max_size=60) | st.sampled_from([b"\r\n", b"MSG x 7 y 3\r\n", b"x" * 100_000]),
)
operations = messages | st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'a word'\r\n"])


def feed(parser: Parser, data: bytes, cuts: list[int]) -> None:
    async def run() -> None:
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for start, stop in pairwise(edges):
            await parser.parse(data[start:stop])

    asyncio.run(run())


@given(st.lists(operations, max_size=12), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_it_hears_what_nats_py_hears(sent: list[Message | bytes], cuts: list[int]) -> None:
    data = b"".join(map(wire, sent))
    plain, short = Client(), Client()
    feed(Parser(plain), data, cuts)
    parser = ShortcutParser(short)
    parser.takers[b"%d" % TAKEN] = short.take
    feed(parser, data, cuts)
    assert short.heard == plain.heard
    assert short.stats == plain.stats


def test_a_new_connection_begins_anew() -> None:
    client = Client()
    parser = ShortcutParser(client)
    parser.takers[b"%d" % TAKEN] = client.take
    feed(parser, b"MSG a.b 7 r 10\r\nhalf", [])
    parser.reset()
    feed(parser, b"MSG a.b 7 r 2\r\nab\r\n", [])
    assert client.heard == [(TAKEN, "a.b", "r", b"ab", None)]
