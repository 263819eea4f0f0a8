"""Looks at a running Headrace through NATS alone: about ten requests a look however busy it is, and one
subscription that brings a message or two a response. Gives snapshots; must not know how they are shown."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import msgspec
import nats.errors
from nats.aio.msg import Msg

from broker import subjects
from broker.connection import Broker, NoAnswer, unix_ms
from broker.jetstream import ApiError
from broker.presence import MISSED_INTERVALS
from broker.replylog import decode_reply, decode_stored
from broker.settings import masked_urls
from deploy.top import asked
from deploy.top.asked import ConsumerInfo
from deploy.top.failures import Failures
from deploy.top.job_book import JobBook
from deploy.top.queue_rows import Moment, QueueRows
from deploy.top.snapshot import Snapshot, WorkerRow
from schemas import codec
from schemas.job import DeadLetter
from schemas.presence import WorkerCard
from schemas.reply import Closed, Failed, Finished

log = logging.getLogger(__name__)

BACK = 200  # jobs before the oldest open one that are looked at once, at the start: what failed lately
LOOK_UPS = 128  # logs whose end is read at one look; a busier system's failures are a sample
MAX_CLOSED = 1000  # heard between two looks; beyond, the oldest are not looked at


class Watch:
    """``look`` as often as wanted."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._book = JobBook()
        self._queues = QueueRows()
        self._failures = Failures()
        self._next_seq = 0  # of JOBS; 0: nothing was read yet
        self._dead_seq = 0
        self._closed: deque[tuple[str, Closed, int]] = deque(maxlen=MAX_CLOSED)
        self._last = Snapshot(unix_ms=unix_ms(), broker=masked_urls(broker.config.url), connected=False)

    @classmethod
    @asynccontextmanager
    async def on(cls, broker: Broker) -> AsyncIterator[Watch]:
        watch = cls(broker)
        fences = await broker.nc.subscribe(subjects.live_fences(), cb=watch._fence)
        try:
            yield watch
        finally:
            try:
                await fences.unsubscribe()
            except nats.errors.Error as error:  # reconnecting or closed
                log.debug("unsubscribe: %s", error)

    async def look(self) -> Snapshot:
        """Where the broker does not answer: the last one again, and why."""
        try:
            self._last = await self._look()
        except (NoAnswer, ApiError) as error:
            return self.stale(str(error))
        return self._last

    def stale(self, error: str) -> Snapshot:
        """The last one, which is not news any more."""
        return msgspec.structs.replace(self._last, connected=self._broker.connected, error=error)

    async def _look(self) -> Snapshot:
        began_s = time.perf_counter()
        jobs = await asked.stream_info(self._broker, subjects.JOBS)
        answer_ms = (time.perf_counter() - began_s) * 1000
        replies = await asked.stream_info(self._broker, subjects.REPLIES)
        dead = await asked.stream_info(self._broker, subjects.DEAD)
        cards = await asked.worker_cards(self._broker)
        queues = _job_queues(await asked.consumers(self._broker, subjects.JOBS))
        await self._read_jobs(jobs.state, queues)
        await self._look_up_ends()
        await self._read_dead(dead.state.last_seq)
        workers = tuple(_worker(card, seen_s) for card, seen_s in cards)
        alive = [card for (card, _), row in zip(cards, workers, strict=True) if row.state != "silent"]
        return Snapshot(
            unix_ms=unix_ms(),
            broker=self._last.broker,
            connected=True,
            answer_ms=answer_ms,
            gateways=await asked.gateways(self._broker),
            workers=workers,
            queues=self._queues.rows(queues, alive, self._book, Moment(time.monotonic(), unix_ms())),
            tenants=self._book.tenants(),
            failures=self._failures.rows(),
            streams=(jobs.row(subjects.JOBS), replies.row(subjects.REPLIES), dead.row(subjects.DEAD)),
            jobs_counted=self._book.complete,
        )

    async def _read_jobs(self, state: asked.StreamState, queues: dict[str, ConsumerInfo]) -> None:
        self._book.reached({name: info.reach for name, info in queues.items()})
        if not self._next_seq:
            open_from = [info.reach.floor + 1 for info in queues.values() if info.busy]
            self._next_seq = max(1, min([*open_from, state.last_seq + 1]) - BACK)
        first_seq = max(self._next_seq, state.first_seq, state.last_seq - asked.MAX_NEW_JOBS + 1)
        if first_seq > max(self._next_seq, state.first_seq):
            self._book.complete = False
        if first_seq <= state.last_seq:
            found = await asked.jobs_from(self._broker, first_seq)
            self._book.stored(found)
            self._next_seq = max([state.last_seq, *(job.seq for job in found)]) + 1

    async def _look_up_ends(self) -> None:
        jobs = {job.response: job for job in self._book.to_look_up(LOOK_UPS)}
        for item in await asked.last_of_logs(self._broker, list(jobs.values())):
            message = decode_stored(item)
            if isinstance(message, Finished | Failed | Closed):
                job = jobs[subjects.parse_reply(item.subject).response]
                self._book.ended(job)
                if not isinstance(message, Finished):
                    self._failures.ended(job.response, job, message, int(item.stored_unix_ms))
        while self._closed:
            response, closed, when = self._closed.popleft()
            known = self._book.by_response(response)
            if known is not None:
                self._book.ended(known)
            self._failures.ended(response, known, closed, when)

    async def _read_dead(self, last_seq: int) -> None:
        if last_seq > self._dead_seq:
            for letter in await asked.dead_letters(self._broker, last_seq):
                self._failures.buried(letter, *_origin(letter))
        self._dead_seq = last_seq

    # -- what is heard ------------------------------------------------------------------------------

    async def _fence(self, msg: Msg) -> None:
        message = decode_reply(msg.subject, msg.data, 0)
        if isinstance(message, Closed):
            self._closed.append((subjects.parse_reply(msg.subject).response, message, unix_ms()))


def _job_queues(infos: Iterable[ConsumerInfo]) -> dict[str, ConsumerInfo]:
    """By name: other consumers of JOBS only read along."""
    found = {}
    for info in infos:
        try:
            queue = subjects.parse_job(info.config.filter_subject).consumer
        except ValueError:
            continue
        if info.name == queue:
            found[queue] = info
    return found


def _origin(letter: DeadLetter) -> tuple[str, str]:
    """Its model and tenant, as far as the job can be read."""
    try:
        job = codec.decode_job(letter.job)
    except msgspec.DecodeError:
        tokens = letter.job_subject.split(".")
        return (tokens[2] if len(tokens) > 2 else "", "")
    return job.model_name, job.tenant


def _worker(card: WorkerCard, seen_s: float) -> WorkerRow:
    silent = seen_s > card.interval_s * MISSED_INTERVALS
    return WorkerRow(
        worker=card.worker,
        model=card.model_name,
        host=card.host,
        pid=card.pid,
        engine=card.engine,
        version=card.version,
        state="silent" if silent else card.state,
        seen_s=seen_s,
        up_s=max(0.0, (unix_ms() - card.started_unix_ms) / 1000) if card.started_unix_ms else 0.0,
        slots=card.slots,
        running=card.running,
        waiting=card.waiting,
        tokens_per_s=card.tokens_per_s,
        kv_cache_usage=card.kv_cache_usage,
    )
