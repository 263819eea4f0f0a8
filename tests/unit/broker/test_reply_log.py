"""The reply log's rules one by one, each as the shortest log that shows it. What happens when everything
happens at once is in test_reply_log_interleavings.py."""

from __future__ import annotations

import pytest

from broker.log_reader import LogReader
from broker.log_writer import MESSAGE_TOKENS, LogWriter
from schemas.ids import Fence, ResponseId, WorkerId
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    Handoff,
    Joined,
    Parted,
    ReplyMessage,
    Started,
    Timings,
    TokenLogprobs,
    Tokens,
    Usage,
)


def started(attempt: int) -> Started:
    return Started(attempt=attempt, worker=WorkerId(f"w{attempt}"))


def read(*messages: ReplyMessage) -> LogReader:
    reader = LogReader()
    for seq, message in enumerate(messages, 1):
        reader.feed(seq, message)
    return reader


def tokens(fence: int, offset: int, *ids: int) -> Tokens:
    return Tokens(fence=Fence(fence), offset=offset, ids=ids)


def test_a_gap_waits_and_a_repeat_fills_it() -> None:
    reader = read(started(1), tokens(1, 0, 5))
    assert reader.feed(3, tokens(1, 2, 7)).gap
    assert reader.ids == [5]
    assert reader.feed(4, tokens(1, 1, 6, 7)).new_ids == (6, 7)


def test_finished_fills_what_is_missing_and_ends() -> None:
    reader = read(started(1), tokens(1, 0, 5))
    finished = Finished(fence=Fence(1), total=3, reason="stop", ids=(5, 6, 7), usage=Usage())
    step = reader.feed(3, finished)
    assert step.new_ids == (6, 7)
    assert step.end is not None
    assert step.end.total == 3
    assert reader.feed(4, Closed(reason="cancelled")).end is None


def test_a_replaced_writers_terminal_is_no_end() -> None:
    reader = read(started(1), started(2), Failed(fence=Fence(1), code="engine_failed", message=""))
    assert reader.end is None


def test_closed_may_bring_the_whole_completion() -> None:
    reader = read(Closed(reason="completed", ids=(1, 2, 3)))
    assert reader.ids == [1, 2, 3]
    assert reader.end is not None
    assert reader.end.total == 3


def test_closed_total_cuts() -> None:
    reader = read(started(1), tokens(1, 0, 1, 2, 3, 4), Closed(reason="stop", total=2))
    assert reader.end is not None
    assert reader.end.total == 2


@pytest.mark.parametrize(
    ("messages", "poison"),
    [
        ([started(1), started(2)], False),
        ([started(1), started(2), started(3)], True),
        ([started(1), Handoff(fence=Fence(1)), started(2), started(3)], False),
        ([started(1), started(2), tokens(2, 0, 4), started(3), started(4)], False),
        ([m for k in range(8) for m in (started(k + 1), tokens(2 * k + 1, k, 7))], True),
        ([m for k in range(7) for m in (started(k + 1), tokens(2 * k + 1, k, 7))], False),
    ],
)
def test_poison_counts_attempts_that_failed(messages: list[ReplyMessage], poison: bool) -> None:
    assert read(*messages).is_poison() is poison


def test_writer_merges_and_rewinds_to_the_last_confirmed_token() -> None:
    log = LogWriter(Fence(9), [1, 2])
    log.append([3])
    log.append([4])
    assert log.take() == Tokens(fence=Fence(9), offset=2, ids=(3, 4))
    assert log.take() is None
    log.confirmed(3)
    log.rewind()
    assert log.take() == Tokens(fence=Fence(9), offset=3, ids=(4,))
    assert (log.generated, log.total, log.unsent) == (2, 4, 0)


def test_writer_takes_no_tokens_after_its_terminal() -> None:
    log = LogWriter(Fence(1))
    log.finished("stop", Usage(), Timings())
    with pytest.raises(RuntimeError):
        log.append([1])


def test_a_message_fed_twice_counts_once() -> None:
    reader = read(started(1), tokens(1, 0, 5))
    assert reader.feed(1, started(1)).started is None
    assert (reader.attempts, reader.fence, reader.last_seq) == (1, 1, 2)


def test_a_long_backlog_leaves_in_messages_of_bounded_size() -> None:
    log = LogWriter(Fence(1))
    log.append(range(2 * MESSAGE_TOKENS + 5))
    sizes = []
    while (message := log.take()) is not None:
        sizes.append(len(message.ids))
    assert sizes == [MESSAGE_TOKENS, MESSAGE_TOKENS, 5]


def test_a_token_without_its_log_probability_keeps_its_place() -> None:
    known = TokenLogprobs(-0.5)
    reader = read(
        started(1),
        Tokens(fence=Fence(1), offset=0, ids=(5,), logprobs=(known,)),
        Finished(fence=Fence(1), total=2, reason="stop", ids=(5, 6), usage=Usage()),
    )
    assert reader.logprobs == [known, TokenLogprobs(-9999.0)]


LEADER, HEIR = (ResponseId(f"resp_01JD000000000000000000000{n}") for n in range(2))


def test_a_joined_log_counts_what_its_end_repeats_however_much_was_lent() -> None:
    for lent in ((), (5,), (5, 6, 7, 8)):
        reader = read(Joined(leader=LEADER))
        reader.lend(lent)
        step = reader.feed(2, Closed(reason="cancelled", ids=(5, 6)))
        assert step.end is not None
        assert (step.end.total, reader.ids[: step.end.total]) == (2, [5, 6])
        reader = read(Joined(leader=LEADER))
        reader.lend(lent)
        reader.feed(2, Closed(reason="deadline"))
        assert reader.end is not None
        assert reader.end.total == 0


def test_a_parted_log_goes_on_behind_the_leaders_tokens() -> None:
    for lent in ((), (5,), (5, 6)):
        reader = read(Joined(leader=LEADER))
        reader.lend(lent)
        assert (reader.leader, reader.shared_seq) == (LEADER, 1)
        step = reader.feed(2, Parted(ids=(5, 6)))
        assert list(step.new_ids) == [5, 6][len(lent) :]
        assert (reader.leader, reader.parted, reader.shared_seq) == (None, True, 2)
        reader.feed(3, started(1))
        reader.feed(4, tokens(3, 2, 7))
        assert reader.ids == [5, 6, 7]
        reader.feed(5, Closed(reason="cancelled"))
        assert reader.end is not None
        assert reader.end.total == 3


def test_the_last_joined_names_the_leader() -> None:
    reader = read(Joined(leader=LEADER), Joined(leader=HEIR))
    assert (reader.leader, reader.shared_seq, reader.parted) == (HEIR, 2, False)
