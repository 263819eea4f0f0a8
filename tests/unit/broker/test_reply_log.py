"""The reply log's rules as properties: whatever is lost, repeated, delayed or interleaved on the way to
the stream, every reader of the stream sees one unbroken chain of tokens, each once, and one end.

Tokens here are never made twice: each knows the token it was sampled after. A lost, repeated, reordered
or wrongly continued token breaks the chain, and so does one of a writer that has been replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log_reader import LogReader
from broker.log_writer import MESSAGE_TOKENS, LogWriter
from schemas.ids import Fence, WorkerId
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    Handoff,
    ReplyMessage,
    Started,
    Timings,
    TokenLogprobs,
    Tokens,
    Usage,
)

LENGTH = 24


def started(attempt: int) -> Started:
    return Started(attempt=attempt, worker=WorkerId(f"w{attempt}"))


@dataclass
class Stream:
    """What JetStream promises and no more: a total order, and refusal of a conditional publish whose
    fence subject has moved on."""

    messages: list[ReplyMessage] = field(default_factory=list)
    last_fence_seq: int = 0

    def store(self, message: ReplyMessage) -> int | None:
        if isinstance(message, Finished | Failed) and message.fence != self.last_fence_seq:
            return None
        self.messages.append(message)
        seq = len(self.messages)
        if not isinstance(message, Finished | Failed | Tokens):
            self.last_fence_seq = seq
        return seq

    def read(self, upto: int | None = None) -> LogReader:
        reader = LogReader()
        for seq, message in enumerate(self.messages[:upto], 1):
            reader.feed(seq, message)
        return reader


@dataclass
class Worker:
    """A writer with its connection: messages leave in order, and are stored in order or lost."""

    log: LogWriter
    wire: deque[ReplyMessage] = field(default_factory=deque)
    lossy: bool = False  # a later ack no longer proves the earlier messages
    over: bool = False


class World:
    """Writers, their connections, one stream and one reader that follows it."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.workers: list[Worker] = []
        self.live = LogReader()
        self.live_ids: list[int] = []
        self.live_ends = 0
        self.sampled_after: list[int] = []  # by token id; -1: the first of a completion
        self.claim()

    def claim(self) -> None:
        """A new attempt, while older ones may still be writing."""
        if len(self.workers) == 4 or self.stream.read().end is not None:
            return
        seq = self.stream.store(started(len(self.workers) + 1))
        assert seq is not None
        self.workers.append(Worker(LogWriter(Fence(seq), self.stream.read(seq - 1).ids)))

    def generate(self, worker: Worker, count: int) -> None:
        for _ in range(0 if worker.over else min(count, LENGTH - worker.log.total)):
            self.sampled_after.append(worker.log.ids[-1] if worker.log.ids else -1)
            worker.log.append([len(self.sampled_after) - 1])

    def publish(self, worker: Worker, _count: int) -> None:
        message = worker.log.take()
        if message is not None:
            worker.wire.append(message)

    def arrive(self, worker: Worker, count: int) -> None:
        for _ in range(min(count, len(worker.wire))):
            message = worker.wire.popleft()
            assert isinstance(message, Tokens)
            self.stream.store(message)
            if not worker.lossy:
                worker.log.confirmed(message.offset + len(message.ids))

    def connection_breaks(self, worker: Worker, keep: int) -> None:
        """Part of what is under way is stored without its ack, the rest is lost; the writer rewinds."""
        for message in list(worker.wire)[:keep]:
            self.stream.store(message)
        worker.wire.clear()
        worker.log.rewind()

    def drop_one(self, worker: Worker, _count: int) -> None:
        """Silently, as a stream above its queue limit may: only Finished can repair it."""
        if worker.wire:
            worker.wire.popleft()
            worker.lossy = True

    def finish(self, worker: Worker, count: int) -> None:
        if worker.over:
            return
        self.generate(worker, LENGTH if count > 2 else 0)
        if worker.log.total == LENGTH:
            worker.over = True
            while worker.wire:
                self.stream.store(worker.wire.popleft())
            self.stream.store(worker.log.finished("length", Usage(), Timings()))

    def fail(self, worker: Worker, count: int) -> None:
        if not worker.over and count == 4:
            worker.over = True
            self.stream.store(worker.log.failed("engine_rejected", ""))

    def close(self, _worker: Worker, count: int) -> None:
        if count == 4:
            self.stream.store(Closed(reason="cancelled"))

    def hand_off(self, worker: Worker, _count: int) -> None:
        self.stream.store(Handoff(fence=worker.log.fence))

    def follow(self, _worker: Worker, count: int) -> None:
        """The live reader gets some more messages, and the last ones before a second time."""
        start = max(0, self.live.last_seq - 2)
        for seq in range(start + 1, min(len(self.stream.messages), self.live.last_seq + count) + 1):
            step = self.live.feed(seq, self.stream.messages[seq - 1])
            self.live_ids.extend(step.new_ids)
            self.live_ends += step.end is not None

    def check(self) -> None:
        fresh = self.stream.read()
        assert [self.sampled_after[token] for token in fresh.ids] == [-1, *fresh.ids][: len(fresh.ids)]
        assert self.live_ids == self.live.ids == fresh.ids[: len(self.live_ids)]
        assert self.live_ends <= 1
        if fresh.end is not None and isinstance(fresh.end.message, Finished):
            assert fresh.end.total == len(fresh.ids) == LENGTH


ACTIONS: list[tuple[int, Callable[[World, Worker, int], None]]] = [
    (8, World.generate),
    (8, World.publish),
    (8, World.arrive),
    (4, World.follow),
    (3, lambda world, _worker, _count: world.claim()),
    (2, World.connection_breaks),
    (2, World.drop_one),
    (2, World.finish),
    (1, World.hand_off),
    (1, World.fail),
    (1, World.close),
]
WEIGHTED = [action for weight, action in ACTIONS for _ in range(weight)]
SCHEDULE = st.lists(
    st.tuples(st.integers(0, len(WEIGHTED) - 1), st.integers(0, 3), st.integers(1, 4)),
    min_size=30,
    max_size=90,
)


@settings(max_examples=300, deadline=None)
@given(SCHEDULE)
def test_every_reader_sees_one_unbroken_chain(schedule: list[tuple[int, int, int]]) -> None:
    world = World()
    for action, which, count in schedule:
        WEIGHTED[action](world, world.workers[which % len(world.workers)], count)
        world.check()


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


def test_what_was_not_sent_is_put_back_and_nothing_else() -> None:
    log = LogWriter(Fence(1))
    log.append([1, 2])
    assert log.take() is not None
    log.append([3])
    last = log.take()
    assert last is not None
    log.put_back(last)
    assert log.take() == last
