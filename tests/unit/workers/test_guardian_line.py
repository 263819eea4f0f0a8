"""The line between a worker and its guardian, over a real pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import WorkerId
from workers.lifeline import Lifeline, LifelineReader

ACK = "$JS.ACK.JOBS.sim-fair.1.2.3.1700000000000000000.0"
WORKER = WorkerId("wk-1")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def drained(reading: int, reader: LifelineReader | None = None) -> LifelineReader:
    reader = reader or LifelineReader()
    try:
        while data := os.read(reading, 1 << 16):
            reader.feed(data)
    except BlockingIOError:
        pass
    return reader


def test_what_is_taken_and_not_done_is_held(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    line = Lifeline(writing)
    line.ready(WORKER)
    for n in range(3):
        line.took(f"{ACK}.{n}")
    line.done(f"{ACK}.1")
    reader = drained(reading)
    assert reader.worker == WORKER
    assert list(reader.held) == [f"{ACK}.0", f"{ACK}.2"]


def test_a_full_pipe_blocks_nobody_and_what_was_held_is_not_known_any_more(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    line = Lifeline(writing)
    line.ready(WORKER)
    for n in range(2000):  # more than a pipe holds; the last of them are lost
        line.took(f"{ACK}.{n}")
    reader = drained(reading)
    assert 100 < len(reader.held) < 2000
    line.done(f"{ACK}.1999")
    line.took(f"{ACK}.new")
    assert list(drained(reading, reader).held) == [f"{ACK}.new"]
    assert reader.worker == WORKER


def test_a_guardian_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    Lifeline(writing).took(ACK)
    os.close(writing)


def test_nobody_guards() -> None:
    Lifeline(None).took(ACK)


def test_the_worker_gives_the_line_to_no_child(pipe: tuple[int, int]) -> None:
    """Or a process that it left behind would keep the line open."""
    os.set_inheritable(pipe[1], True)
    Lifeline(pipe[1])
    assert not os.get_inheritable(pipe[1])


def test_words_of_a_newer_worker_are_ignored() -> None:
    reader = LifelineReader()
    reader.feed(b"mood splendid\nalive and well\ntook a\nhum\n")
    assert list(reader.held) == ["a"]


@given(st.lists(st.sampled_from(["took a", "took b", "done a", "anew", "alive 1.5"])), st.data())
def test_lines_may_come_in_any_pieces(lines: list[str], data: st.DataObject) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    whole, pieces = LifelineReader(), LifelineReader()
    whole.feed(text)
    while text:
        size = data.draw(st.integers(1, len(text)))
        pieces.feed(text[:size])
        text = text[size:]
    assert (pieces.held, pieces.beats, pieces.alive_s) == (whole.held, whole.beats, whole.alive_s)
