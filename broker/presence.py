"""Who is there: workers announce themselves in a KV bucket and answer pings, gateways keep a roster.

The roster listens to the bucket's subjects with a plain subscription, which works at once after a broker
restart (nats-py's KV watch stays blind for 19 s), and loads the bucket at the start and at every reconnect.
Must not know how a worker is chosen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from broker import jetstream, metrics, subjects
from broker.connection import Broker, NoAnswer, unix_ms
from schemas import codec
from schemas.ids import WorkerId
from schemas.presence import WorkerCard

log = logging.getLogger(__name__)

MISSED_INTERVALS = 3  # not heard of for so many announcements: dead
PRUNE_S = (0.1, 2.0)  # the roster looks for silent workers as often as the quickest announces, within these
_PREFIX = f"$KV.{subjects.WORKERS_KV}."
_OPERATION = "KV-Operation"  # header of a KV delete marker

PingResult = Literal["alive", "dead", "silent"]


async def announce(broker: Broker, card: WorkerCard) -> None:
    """Not confirmed, and nothing while disconnected: the next announcement comes soon."""
    await _put(broker, card.worker, codec.encode(card), None)


async def withdraw(broker: Broker, worker: WorkerId) -> None:
    """Say goodbye: rosters drop the worker at once."""
    await _put(broker, worker, b"", {_OPERATION: "DEL"})


async def _put(broker: Broker, worker: WorkerId, data: bytes, headers: dict[str, str] | None) -> None:
    if not broker.connected:
        return
    try:
        await broker.nc.publish(f"{_PREFIX}{worker}", data, headers=headers)
    except nats.errors.Error as error:
        log.debug("presence of %s was not sent: %s", worker, error)


@dataclass(slots=True)
class _Seen:
    """Loop times. ``spared_at``: when it was last excused, for nobody could be heard."""

    card: WorkerCard
    at: float
    spared_at: float = float("-inf")

    @property
    def stale_at(self) -> float:
        return max(self.at, self.spared_at) + self.card.interval_s * MISSED_INTERVALS


class Roster:
    """The workers that are alive. Age counts from when a card was stored or heard here, never from a
    worker's clock, and not while the broker is away."""

    def __init__(self, broker: Broker) -> None:
        self.ready = asyncio.Event()
        self._broker = broker
        self._seen: dict[WorkerId, _Seen] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._reload = asyncio.Event()
        self._clock = asyncio.get_running_loop().time

    def workers(self) -> list[WorkerCard]:
        """Alive workers, by id."""
        now = self._clock() if self._broker.connected else float("-inf")
        return [seen.card for _, seen in sorted(self._seen.items()) if seen.stale_at >= now]

    def on_change(self, callback: Callable[[], None]) -> None:
        """``callback`` is called when a worker appears, leaves or changes its state; not for mere load."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Never returns."""
        self._broker.on_reconnect(self._reconnected)
        subscription = await self._broker.nc.subscribe(f"{_PREFIX}*", cb=self._heard)
        try:
            await self._load()
            self.ready.set()
            while True:
                try:
                    async with asyncio.timeout(self._prune_s()):
                        await self._reload.wait()
                except TimeoutError:
                    self._prune()
                else:
                    self._reload.clear()
                    await self._load()
        finally:
            self._broker.off_reconnect(self._reconnected)
            await _unsubscribe(subscription)

    async def _load(self) -> None:
        while True:
            try:
                await self._broker.wait_connected()
                stored = jetstream.messages(self._broker, f"KV_{subjects.WORKERS_KV}", f"{_PREFIX}>")
                async for item in stored:
                    age_s = max(0.0, (unix_ms() - item.stored_unix_ms) / 1000)
                    self._take(item.subject, item.data, _OPERATION in item.headers, self._clock() - age_s)
            except (NoAnswer, jetstream.ApiError) as error:
                log.debug("the roster cannot be loaded yet: %s", error)
                await asyncio.sleep(0.1)
            else:
                return

    async def _heard(self, msg: Msg) -> None:
        self._take(
            msg.subject, msg.data, msg.headers is not None and _OPERATION in msg.headers, self._clock()
        )

    def _take(self, subject: str, data: bytes, gone: bool, at: float) -> None:
        worker = WorkerId(subject.removeprefix(_PREFIX))
        before = self._seen.get(worker)
        if before is not None and before.at > at:
            return
        if gone:
            if self._seen.pop(worker, None) is not None:
                self._changed()
            return
        try:
            card = codec.decode_worker_card(data)
        except msgspec.DecodeError as error:
            metrics.UNDECODABLE.labels(stream=subjects.WORKERS_KV).inc()
            log.error("the card of worker %s does not decode: %s", worker, error)
            return
        self._seen[worker] = _Seen(card, at, before.spared_at if before is not None else float("-inf"))
        if before is None or before.card.state != card.state or before.stale_at < self._clock():
            self._changed()

    def _prune_s(self) -> float:
        quickest, slowest = PRUNE_S
        return max(quickest, min((seen.card.interval_s for seen in self._seen.values()), default=slowest))

    def _prune(self) -> None:
        if not self._broker.connected:
            return
        now = self._clock()
        gone = [worker for worker, seen in self._seen.items() if seen.stale_at < now]
        for worker in gone:
            log.warning("worker %s has not been heard of for %.1f s", worker, now - self._seen.pop(worker).at)
        if gone:
            self._changed()

    def _reconnected(self) -> None:
        for seen in self._seen.values():  # nobody could be heard: everyone gets another chance
            seen.spared_at = self._clock()  # but a farewell that is stored counts
        self._reload.set()

    def _changed(self) -> None:
        for callback in self._callbacks:
            callback()


async def answer_pings(broker: Broker, worker: WorkerId) -> Subscription:
    """Answer from now on; the subscription survives reconnects."""

    async def answer(msg: Msg) -> None:
        if msg.reply:
            await broker.nc.publish(msg.reply)

    return await broker.nc.subscribe(subjects.worker_ping(worker), cb=answer)


async def ping(broker: Broker, worker: WorkerId, timeout_s: float) -> PingResult | None:
    """``dead``: nobody listens; ``silent``: no answer in time. None: no verdict, the connection is down."""
    try:
        await broker.request(subjects.worker_ping(worker), timeout_s=timeout_s)
    except NoAnswer as error:
        match error.why:
            case "no_responders":
                return "dead"
            case "timeout":
                return "silent"
            case "disconnected":
                return None
    return "alive"


async def _unsubscribe(subscription: Subscription) -> None:
    try:
        await subscription.unsubscribe()
    except nats.errors.Error as error:
        log.debug("unsubscribe: %s", error)
