"""What JetStream holds of each response: its job and its log, with the times at which they were stored.

This is the other half of the evidence, read straight from the server after the faults. The log is read by the
product's own reader, and beside it every message is held against what the rules allow to be written at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from broker import subjects
from broker.connection import Broker
from broker.log_reader import LogReader
from broker.replylog import decode_reply
from schemas import codec
from schemas.ids import ResponseId
from schemas.job import Job
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    FinishReason,
    Handoff,
    Joined,
    Parted,
    ReplyMessage,
    Started,
    Tokens,
)

FETCH, FETCH_LIMIT_S = 500, 5.0


@dataclass(slots=True)
class Attempt:
    """One writer. Times are unix milliseconds, as stored. ``prior``: tokens the log held before it.
    ``lost_ms``: when it ceased to be the writer; ``last_stale_ms``: the last message it wrote after that."""

    seq: int
    worker: str
    pulled_ms: float
    stored_ms: float
    prior: int
    first_tokens_ms: float | None = None
    handed_off_ms: float | None = None
    lost_ms: float | None = None
    last_stale_ms: float | None = None


@dataclass(slots=True)
class Truth:
    """``expected``: all the engine says to this job, whoever was killed on the way. ``breaches``: messages
    that no rule of the reply log allows."""

    job: Job
    stored_ms: float
    expected: list[int]
    reason: FinishReason
    reader: LogReader = field(default_factory=LogReader)
    attempts: list[Attempt] = field(default_factory=list)
    ended_ms: float | None = None
    breaches: list[str] = field(default_factory=list)

    def feed(self, seq: int, stored_ms: float, message: ReplyMessage) -> None:
        self._check(message, stored_ms)
        prior, had_ended = len(self.reader.ids), self.reader.end is not None
        step = self.reader.feed(seq, message)
        if isinstance(message, Started):
            self._pass_on(stored_ms)
            new = Attempt(seq, message.worker, message.pulled_unix_ms, stored_ms, prior)
            new.lost_ms = stored_ms if had_ended else None
            self.attempts.append(new)
        elif isinstance(message, Handoff) and self.attempts:
            self.attempts[-1].handed_off_ms = stored_ms
        elif self.attempts and step.new_ids and self.attempts[-1].first_tokens_ms is None:
            self.attempts[-1].first_tokens_ms = stored_ms
        if step.end is not None:
            self.ended_ms = stored_ms
            self._pass_on(stored_ms)

    def _pass_on(self, stored_ms: float) -> None:
        if self.attempts and self.attempts[-1].lost_ms is None:
            self.attempts[-1].lost_ms = stored_ms

    def _check(self, message: ReplyMessage, stored_ms: float) -> None:
        if isinstance(message, Started | Handoff | Joined | Parted | Closed):
            return
        writer = next((attempt for attempt in self.attempts if attempt.seq == message.fence), None)
        if writer is None:
            self.breaches.append(f"{_name(message)} under fence {message.fence}, which no Started has")
            return
        if writer.lost_ms is not None:
            writer.last_stale_ms = stored_ms
        if isinstance(message, Finished | Failed):
            if writer.lost_ms is not None:
                self.breaches.append(
                    f"{_name(message)} by {writer.worker}, which was not the writer any more"
                )
            return
        end = message.offset + len(message.ids)
        if end <= writer.prior:  # it may repeat what was there before it, to bring what comes next
            self.breaches.append(
                f"{writer.worker} wrote tokens {message.offset}…{end}, the log held {writer.prior}"
            )
        if list(message.ids) != self.expected[message.offset : end]:
            self.breaches.append(f"{writer.worker} wrote wrong tokens at {message.offset}…{end}")


def _name(message: Tokens | Finished | Failed) -> str:
    return type(message).__name__


@dataclass
class Evidence:
    """Everything stored since the last look, by response. ``jobs_seq``, ``replies_seq``: where the next look
    begins."""

    truths: dict[ResponseId, Truth]
    strays: list[str]
    jobs_seq: int
    replies_seq: int


async def read(
    broker: Broker, expect: Callable[[Job], tuple[list[int], FinishReason]], jobs_seq: int, replies_seq: int
) -> Evidence:
    """All jobs and logs from these sequences on."""
    found = Evidence({}, [], jobs_seq, replies_seq)
    async for msg in _stored(broker, subjects.JOBS, subjects.JOBS_SUBJECTS, jobs_seq):
        job = codec.decode_job(msg.data)
        found.truths[job.response] = Truth(job, _stored_ms(msg), *expect(job))
        found.jobs_seq = msg.metadata.sequence.stream + 1
    async for msg in _stored(broker, subjects.REPLIES, subjects.REPLIES_SUBJECTS, replies_seq):
        seq = found.replies_seq = msg.metadata.sequence.stream
        response = subjects.parse_reply(msg.subject).response
        message = decode_reply(msg.subject, msg.data, seq)
        truth = found.truths.get(response)
        if truth is None:  # a refused job: closed so that no worker ever starts it
            if not isinstance(message, Closed):
                found.strays.append(f"{type(message).__name__} of {response}, which has no job")
        elif message is not None:
            truth.feed(seq, _stored_ms(msg), message)
    found.replies_seq += 1
    return found


async def _stored(broker: Broker, stream: str, subject_filter: str, first_seq: int) -> AsyncIterator[Msg]:
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=max(1, first_seq),
        ack_policy=AckPolicy.NONE,
        mem_storage=True,
        inactive_threshold=30,
    )
    reading = await broker.js.pull_subscribe(subject_filter, stream=stream, config=config)
    try:
        pending = (await reading.consumer_info()).num_pending
        while pending:
            for msg in await reading.fetch(FETCH, timeout=FETCH_LIMIT_S):
                pending = msg.metadata.num_pending
                yield msg
    except nats.errors.TimeoutError:
        raise RuntimeError(f"{stream} could not be read to its end") from None
    finally:
        info = await reading.consumer_info()
        await reading.unsubscribe()
        await broker.js.delete_consumer(stream, info.name)


def _stored_ms(msg: Msg) -> float:
    return msg.metadata.timestamp.timestamp() * 1000
