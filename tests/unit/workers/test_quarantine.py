"""Suspects run one at a time."""

from __future__ import annotations

from broker.log_reader import LogReader
from schemas.ids import Fence, WorkerId
from schemas.reply import Started, Tokens
from workers.quarantine import Quarantine, is_suspect


def started(reader: LogReader, seq: int) -> None:
    reader.feed(seq, Started(attempt=1, worker=WorkerId("wk-1")))


def test_two_attempts_without_a_token_make_a_suspect_and_a_token_clears_it() -> None:
    reader = LogReader()
    started(reader, 1)
    assert not is_suspect(reader)
    started(reader, 2)
    assert is_suspect(reader)
    reader.feed(3, Tokens(fence=Fence(2), offset=0, ids=(1,)))
    assert not is_suspect(reader)


def test_there_is_room_for_one() -> None:
    quarantine, one, two = Quarantine(), object(), object()
    assert quarantine.admit(one)
    assert quarantine.admit(one)
    assert not quarantine.admit(two)
    quarantine.release(two)
    assert not quarantine.admit(two)
    quarantine.release(one)
    assert quarantine.admit(two)
