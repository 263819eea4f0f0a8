"""Event streams and WebSocket frames, cut anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from deploy.bench.frames import CLOSE, PING, TEXT, BadFrame, FrameReader
from deploy.bench.sse import EventStream


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


cuts = st.lists(st.integers(0, 10_000), max_size=12)
BODY = (
    b": a comment\n\n"
    b'data: {"a": 1}\n\n'
    b'event: response.output_text.delta\ndata: {"b": 2}\nid: 7\n\n'
    b"data:no space\n\n"
    b"data: two\ndata: lines\n\n"
    b"event: nothing\n\n"
    b"data: [DONE]\n\n"
)
DATA = [b'{"a": 1}', b'{"b": 2}', b"no space", b"two\nlines", b"[DONE]"]


@given(cuts, st.booleans())
def test_events_are_the_same_wherever_they_are_cut(where: list[int], carriage_returns: bool) -> None:
    body = BODY.replace(b"\n", b"\r\n") if carriage_returns else BODY
    stream = EventStream()
    found = [data for piece in pieces(body, where) for data in stream.feed(piece)]
    assert found == DATA


@pytest.mark.parametrize("begun", [b"d", b"data: {}", b"data: {}\n", b"data: {}\nd", b"data: {}\r\n\r"])
def test_an_event_that_has_not_ended_is_none(begun: bytes) -> None:
    assert EventStream().feed(begun) == []


payloads = st.lists(st.binary(max_size=300) | st.integers(125, 70_000).map(lambda n: b"x" * n), max_size=8)


@given(payloads, cuts)
def test_frames_are_the_same_wherever_they_are_cut(said: list[bytes], where: list[int]) -> None:
    data = b"".join(Frame(Opcode.TEXT, payload).serialize(mask=False) for payload in said)
    reader = FrameReader()
    found = [frame for piece in pieces(data, where) for frame in reader.feed(piece)]
    assert found == [(TEXT, payload) for payload in said]


def test_fragments_are_one_message_and_controls_may_stand_between() -> None:
    frames = [
        Frame(Opcode.TEXT, b"one ", fin=False),
        Frame(Opcode.PING, b"?"),
        Frame(Opcode.CONT, b"message"),
        Frame(Opcode.CLOSE, b"\x03\xe8"),
    ]
    data = b"".join(frame.serialize(mask=False) for frame in frames)
    assert FrameReader().feed(data) == [(PING, b"?"), (TEXT, b"one message"), (CLOSE, b"\x03\xe8")]


@pytest.mark.parametrize(
    "data",
    [
        Frame(Opcode.TEXT, b"x").serialize(mask=True),
        b"\xc1\x01x",  # a compressed one
        b"\x83\x00",
    ],
)
def test_what_no_server_sends_is_refused(data: bytes) -> None:
    with pytest.raises(BadFrame):
        FrameReader().feed(data)
