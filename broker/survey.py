"""Looks at the server every few seconds, whether or not anybody sends requests: how quickly it answers, what
waits in the queues and for how long, and how full the streams are. For the metrics alone.

One list of consumers tells of all models, those without workers too; a message is fetched only to learn the
age of a queue's oldest job. Must not know who waits, nor decide anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import msgspec

from broker import jetstream, metrics, subjects
from broker.connection import Broker, NoAnswer
from broker.jetstream import ApiError
from schemas.errors import HeadraceError
from schemas.ids import ModelToken

log = logging.getLogger(__name__)

GATEWAY_INTERVAL_S = 5.0
WORKER_INTERVAL_S = 30.0  # there are many, and they only fill in where no gateway lives
TIMEOUT_S = 5  # where the buckets of its round trips end: one without an answer counts above them
STREAMS = (subjects.JOBS, subjects.REPLIES, subjects.DEAD)

Labels = tuple[str, str, str]  # model, priority, lane


class _Delivered(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class _ConsumerConfig(msgspec.Struct, frozen=True):
    filter_subject: str = ""


class _Consumer(msgspec.Struct, frozen=True):
    name: str = ""
    config: _ConsumerConfig = _ConsumerConfig()
    delivered: _Delivered = _Delivered()
    num_pending: int = 0
    num_ack_pending: int = 0


class _ConsumerList(msgspec.Struct, frozen=True):
    total: int = 0
    consumers: tuple[_Consumer, ...] | None = None


class _StreamLimits(msgspec.Struct, frozen=True):
    max_bytes: int = -1
    max_msgs: int = -1


class _StreamState(msgspec.Struct, frozen=True):
    first_ts: datetime
    messages: int = 0
    bytes: int = 0


class _Stream(msgspec.Struct, frozen=True):
    state: _StreamState
    ts: datetime  # by the server's clock, which stamped the messages
    config: _StreamLimits = _StreamLimits()


@dataclass(slots=True)
class _Queue:
    depth: int = 0
    running: int = 0
    oldest_age_s: float = 0.0


class Survey:
    """``name_of``: a model's name for people; the token itself where nobody knows."""

    def __init__(self, broker: Broker, *, interval_s: float, name_of: Callable[[ModelToken], str]) -> None:
        self._broker = broker
        self._interval_s = interval_s
        self._name_of = name_of
        self._shown: dict[Labels, _Queue] = {}
        self._show_traffic()

    def has_jobs(self, model: str) -> bool:
        """By its name: as the last look found, some wait or are with a worker."""
        queues = (queue for labels, queue in self._shown.items() if labels[0] == model)
        return any(queue.depth or queue.running for queue in queues)

    def _show_traffic(self) -> None:
        nc, stats = self._broker.nc, self._broker.nc.stats
        metrics.BROKER_PENDING_BYTES.set_function(lambda: nc.pending_data_size)
        for direction in ("in", "out"):
            messages, size = f"{direction}_msgs", f"{direction}_bytes"
            metrics.BROKER_MESSAGES.labels(direction=direction).read = partial(stats.__getitem__, messages)
            metrics.BROKER_BYTES.labels(direction=direction).read = partial(stats.__getitem__, size)

    async def run(self) -> None:
        """Never returns."""
        while True:
            if self._broker.connected:
                try:
                    await self.look()
                except (HeadraceError, ApiError) as error:
                    log.debug("the server cannot be surveyed: %s", error)
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Raises ``NoAnswer``, ``ApiError``."""
        for name in STREAMS:  # first, for they tell how long an answer takes: a server that stands still now
            await self._look_at_stream(name)  # delays the first question, and those behind it find it awake
        await self._look_at_queues()
        metrics.SURVEYED.set(time.time())

    async def _look_at_queues(self) -> None:
        found: dict[Labels, _Queue] = {}
        for consumer in await self._consumers():
            try:
                of_queue = subjects.parse_job(consumer.config.filter_subject)
            except ValueError:
                continue  # an operator's own
            if consumer.name != of_queue.consumer:
                continue  # likewise: it reads along with a queue
            labels = self._name_of(of_queue.model), of_queue.priority, of_queue.lane
            queue = found.setdefault(labels, _Queue())  # of all revisions
            queue.depth += consumer.num_pending
            queue.running += consumer.num_ack_pending
            queue.oldest_age_s = max(queue.oldest_age_s, await self._oldest_age_s(consumer))
        for labels, queue in found.items():
            metrics.QUEUE_DEPTH.labels(*labels).set(queue.depth)
            metrics.QUEUE_RUNNING.labels(*labels).set(queue.running)
            metrics.QUEUE_OLDEST_AGE_S.labels(*labels).set(queue.oldest_age_s)
        for labels in self._shown.keys() - found.keys():
            for gauge in (metrics.QUEUE_DEPTH, metrics.QUEUE_RUNNING, metrics.QUEUE_OLDEST_AGE_S):
                gauge.remove(*labels)
        self._shown = found

    async def _consumers(self) -> list[_Consumer]:
        found: list[_Consumer] = []
        while True:
            page = await jetstream.call(
                self._broker,
                f"CONSUMER.LIST.{subjects.JOBS}",
                msgspec.json.encode({"offset": len(found)}),
                _ConsumerList,
                timeout_s=TIMEOUT_S,
            )
            found += page.consumers or ()
            if not page.consumers or len(found) >= page.total:
                return found

    async def _oldest_age_s(self, consumer: _Consumer) -> float:
        """Of those never pulled. One that was given back counts as running."""
        if not consumer.num_pending:
            return 0.0
        first_seq = consumer.delivered.stream_seq + 1
        of_queue = consumer.config.filter_subject
        found, _ = await jetstream.next_messages(self._broker, subjects.JOBS, of_queue, first_seq, 1)
        return max(0.0, time.time() - found[0].stored_unix_ms / 1000) if found else 0.0

    async def _look_at_stream(self, name: str) -> None:
        begun_s = time.perf_counter()
        question = f"STREAM.INFO.{name}"
        try:
            info = await jetstream.call(self._broker, question, b"", _Stream, timeout_s=TIMEOUT_S)
        except NoAnswer as error:
            if error.why == "timeout":
                metrics.BROKER_ROUND_TRIP_S.observe(time.perf_counter() - begun_s)
            raise
        metrics.BROKER_ROUND_TRIP_S.observe(time.perf_counter() - begun_s)
        state, limits = info.state, info.config
        metrics.STREAM_BYTES.labels(name).set(state.bytes)
        metrics.STREAM_MESSAGES.labels(name).set(state.messages)
        if limits.max_bytes > 0:
            metrics.STREAM_MAX_BYTES.labels(name).set(limits.max_bytes)
        if limits.max_msgs > 0:
            metrics.STREAM_MAX_MESSAGES.labels(name).set(limits.max_msgs)
        age_s = (info.ts - state.first_ts).total_seconds() if state.messages else 0.0
        metrics.STREAM_OLDEST_AGE_S.labels(name).set(age_s)
