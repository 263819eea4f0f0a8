"""Finds out whether a worker whose streams stall is dead or hangs, and gives its jobs back to the queue, so
that JetStream delivers them again at once. Owns the pings, and the proof that our own side works; the
decisions are those of ``watch_state``. A false alarm costs a redelivery: the log's fences see to the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time

from broker import jobs, metrics, presence
from broker.connection import Broker, NoAnswer
from broker.jetstream import API
from gateway.watch_state import PING_S, SWEEP_S, Answer, Nak, WatchState
from schemas.ids import ResponseId, WorkerId
from schemas.reply import Started

log = logging.getLogger(__name__)


class Watcher:
    """Of the workers whose reply logs this process tails."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._state = WatchState(time.monotonic())

    def begun(self, response: ResponseId, started: Started) -> None:
        """``started``: the log's latest; it replaces the one before."""
        self._state.begun(response, started.worker, started.ack_subject, time.monotonic())

    def heard(self, worker: WorkerId) -> None:
        """A message brought new tokens of this worker. 0.2 us."""
        self._state.heard(worker, time.monotonic())

    def over(self, response: ResponseId) -> None:
        """The response has ended, or is followed no more."""
        self._state.over(response)

    async def run(self) -> None:
        """Never returns."""
        self._broker.on_reconnect(self._reconnected)
        try:
            async with asyncio.TaskGroup() as pings:  # one for a worker at most
                while True:
                    for worker in self._state.swept(time.monotonic()):
                        pings.create_task(self._examine(worker), name=f"ping-{worker}")
                    await asyncio.sleep(SWEEP_S)
        finally:
            self._broker.off_reconnect(self._reconnected)

    def _reconnected(self) -> None:
        self._state.reconnected(time.monotonic())

    async def _examine(self, worker: WorkerId) -> None:
        answer = await self._ask(worker)
        nak = self._state.answered(worker, answer, time.monotonic())
        if nak is not None:
            await self._give_back(nak)

    async def _ask(self, worker: WorkerId) -> Answer | None:
        """None where our own side does not work. The proof comes after the ping has run out, over the same
        connection and with no more patience: what delays the one delays the other."""
        answer = await presence.ping(self._broker, worker, PING_S)
        if answer == "silent" and not await self._broker_answers():
            return None
        return answer

    async def _broker_answers(self) -> bool:
        try:
            await self._broker.request(f"{API}.INFO", timeout_s=PING_S)
        except NoAnswer:
            return False
        return True

    async def _give_back(self, nak: Nak) -> None:
        count = len(nak.ack_subjects)
        log.warning("worker %s is %s: its %d jobs are given back", nak.worker, nak.verdict, count)
        metrics.WATCHER_VERDICTS.labels(verdict=nak.verdict).inc(count)
        for ack_subject in nak.ack_subjects:
            await jobs.nak_delivery(self._broker, ack_subject)
