"""Looks at the queues of the models that have something waiting, about once a second, and tells the responses
that wait here where they stand. Must not know why a request was admitted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from broker import metrics
from broker.connection import Broker
from broker.jetstream import ApiError
from broker.queues import queue_states
from broker.topology import QUEUES
from gateway.backlog import Backlog
from gateway.catalog import ModelCard
from gateway.generation import Queued
from gateway.live import Live
from schemas.errors import HeadraceError
from schemas.ids import ModelToken, ResponseId
from schemas.job import Job, Lane, Priority

log = logging.getLogger(__name__)

LOOK_S = 1.0
TOLD_AT_ONCE = 500  # responses; about a millisecond
FIRST_LOOK_S = 0.1  # most jobs are started by then, and nobody need look
NEWS_PART = (
    20  # a position is news when it has fallen by a 20th: few messages a response, however long the queue
)


@dataclass(slots=True)
class _Watched:
    backlog: Backlog = field(default_factory=Backlog)
    waiting: dict[ResponseId, Live] = field(default_factory=dict)  # of this gateway
    looked_s: float = 0.0


class QueueWatch:
    def __init__(self, broker: Broker, models: Callable[[], list[ModelCard]]) -> None:
        self._broker = broker
        self._models = models
        self._cards: dict[ModelToken, ModelCard] = {}  # that are served
        self._watched: dict[ModelToken, _Watched] = {}
        self._news = asyncio.Event()

    # -- asked at admission ---------------------------------------------------------------------------

    def depth(self, model: ModelToken, priority: Priority) -> int:
        watched = self._watched.get(model)
        return watched.backlog.depth(priority, time.monotonic()) if watched else 0

    def wait_of_next(self, card: ModelCard, priority: Priority, lane: Lane) -> Queued:
        self._cards[card.token] = card
        watched = self._watched.get(card.token)
        return (
            watched.backlog.wait_of_next(priority, lane, card.slots, time.monotonic())
            if watched
            else Queued()
        )

    # -- this gateway's responses ---------------------------------------------------------------------

    def entered(self, live: Live, seq: int) -> None:
        """Its job is stored. A response that a worker was quicker with does not wait any more."""
        if live.end is not None:
            return
        job = live.job
        watched = self._watched.setdefault(job.model, _Watched())
        watched.backlog.entered(job.response, job.priority, job.lane, seq)
        if live.started:
            watched.backlog.started(job.response)
        else:
            watched.waiting[job.response] = live
            self._news.set()

    def started(self, job: Job) -> None:
        if (watched := self._watched.get(job.model)) is not None:
            watched.waiting.pop(job.response, None)
            watched.backlog.started(job.response)

    def ended(self, job: Job, service_s: float | None) -> None:
        if (watched := self._watched.get(job.model)) is not None:
            watched.waiting.pop(job.response, None)
            watched.backlog.ended(job.response, service_s)

    # -- looking --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Never returns."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()
            await asyncio.sleep(FIRST_LOOK_S)
            self._news.clear()
            busy = self._busy()
            for model in busy:
                await self._look(model)
            for model in [m for m, watched in self._watched.items() if watched.backlog.idle]:
                if model not in self._cards:
                    del self._watched[model]

    def _busy(self) -> list[ModelToken]:
        """Models worth a look now: something waits for them, or all their slots are in use."""
        cards = self._models()
        self._cards = {card.token: card for card in cards}
        for card in cards:
            if card.running >= card.slots:
                self._watched.setdefault(card.token, _Watched())
        full = {card.token for card in cards if card.running >= card.slots}
        due_s = time.monotonic() - LOOK_S
        return [
            model
            for model, watched in self._watched.items()
            if watched.looked_s <= due_s
            and (watched.waiting or model in full or any(watched.backlog.depths()))
        ]

    async def _look(self, model: ModelToken) -> None:
        watched = self._watched[model]
        mark = watched.backlog.mark()
        watched.looked_s = time.monotonic()
        try:
            states = await queue_states(self._broker, model)
        except (HeadraceError, ApiError) as error:
            log.debug("the queues of %s cannot be looked at: %s", model, error)
            return
        watched.backlog.looked(states, mark, time.monotonic())
        self._show_estimate(model, watched.backlog)
        await self._tell(model, watched)

    def _slots(self, model: ModelToken) -> int:
        card = self._cards.get(model)
        return 0 if card is None else card.slots

    async def _tell(self, model: ModelToken, watched: _Watched) -> None:
        """A few at a time: streams wait meanwhile."""
        slots, waiting = self._slots(model), list(watched.waiting.items())
        for at in range(0, len(waiting), TOLD_AT_ONCE):
            some = waiting[at : at + TOLD_AT_ONCE]
            waits = watched.backlog.waits_of([response for response, _ in some], slots, time.monotonic())
            for (_, live), wait in zip(some, waits, strict=True):
                if wait is not None and is_news(live.queued, wait):
                    live.waits(wait)
            await asyncio.sleep(0)

    def _show_estimate(self, model: ModelToken, backlog: Backlog) -> None:
        card = self._cards.get(model)
        if card is None:
            return
        now_s = time.monotonic()
        for priority, lane in QUEUES:
            wait = backlog.wait_of_next(priority, lane, card.slots, now_s)
            if wait.eta_ms is not None:
                metrics.QUEUE_ESTIMATE.labels(card.name, priority, lane).set(wait.eta_ms / 1000)


def is_news(told: Queued | None, now: Queued) -> bool:
    if told is None:
        return True
    if told.eta_ms is None and now.eta_ms is not None:
        return True
    return abs(told.position - now.position) >= max(1, told.position // NEWS_PART)
