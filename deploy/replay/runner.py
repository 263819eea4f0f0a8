"""Runs jobs as a gateway would to which a client came: stores them, follows their logs, finds out about dead
workers, ends them at a stop string and at their deadline, and when nobody wants them any more.

Must not know what a job is a replay of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from broker.connection import Broker, NoAnswer
from broker.jetstream import ApiError
from broker.jobs import publish_job
from broker.presence import Roster
from gateway import closer
from gateway.background import Background
from gateway.catalog import Catalog
from gateway.in_flight import InFlight
from gateway.live import Live
from gateway.tokenizer import ChatTokenizer
from schemas.config import Config
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ResponseId, new_process_id
from schemas.job import Job
from schemas.reply import Closed

log = logging.getLogger(__name__)

STORE_LIMIT_S = 30.0
CLOSE_LIMIT_S = 5.0
PAUSE_S = 0.2
MAX_RESPONSES = 4096  # at once; a gateway's own limit is no measure here


class Runner:
    """``gateway``: its own id, under which the logs of its responses stand. ``left``: what it could not
    close."""

    def __init__(self, broker: Broker, catalog: Catalog, in_flight: InFlight, gateway: GatewayId) -> None:
        self.catalog = catalog
        self.gateway = gateway
        self.left: list[ResponseId] = []
        self._broker = broker
        self._in_flight = in_flight

    async def play(self, job: Job, tokenizer: ChatTokenizer) -> None:
        """Returns when it has ended, however. Cancelled, it closes the response first. Raises
        ``HeadraceError``, ``ApiError``: it was not accepted, or cannot be followed, and is closed."""
        stored = False
        try:
            await self._store(job)
            stored = True
            await self._follow(job, tokenizer)
        except (asyncio.CancelledError, HeadraceError, ApiError) as error:
            if stored or isinstance(error, asyncio.CancelledError | NoAnswer):  # else it is known not to be
                await self._close(job)
            raise

    async def _store(self, job: Job) -> None:
        """Under one message id, so that a try of unknown outcome is found again."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + STORE_LIMIT_S
        while True:
            try:
                await publish_job(self._broker, job)
            except NoAnswer:
                if loop.time() > give_up:
                    raise
                await asyncio.sleep(PAUSE_S)
            else:
                return

    async def _follow(self, job: Job, tokenizer: ChatTokenizer) -> None:
        while True:
            try:
                live = await self._in_flight.follow(job, tokenizer)
            except HeadraceError as error:
                if error.code != "broker_unavailable" or not closer.is_of_use(job):
                    raise
                log.warning("%s cannot be followed yet: %s", job.response, error)
                await asyncio.sleep(PAUSE_S)
                continue
            reader = _Reader(live)
            live.attach(reader)
            try:
                await reader.over.wait()
            finally:
                live.detach(reader)
            if live.end is not None:
                return

    async def _close(self, job: Job) -> None:
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await closer.close_surely(self._broker, job, Closed(reason="cancelled"), lambda: True)
        except TimeoutError:
            self.left.append(job.response)


class _Reader:
    """Wants nothing of a response but its end."""

    def __init__(self, live: Live) -> None:
        self.over = asyncio.Event()
        self._live = live
        self.wake()

    def wake(self) -> None:
        if self._live.end is not None or self._live.lost is not None:
            self.over.set()


@asynccontextmanager
async def running(broker: Broker, config: Config) -> AsyncIterator[Runner]:
    """A runner that knows which workers there are. What fails beside its jobs, or in the body, comes out in
    an exception group."""
    gateway = GatewayId(new_process_id("replay"))
    roster = Roster(broker)
    catalog = Catalog(broker, roster)
    background = Background()
    limits = msgspec.structs.replace(config.gateway, max_responses=MAX_RESPONSES)
    in_flight = InFlight(
        broker,
        gateway,
        limits,
        background,
        on_ended=lambda entry: None,
        on_held=lambda entry: None,  # what it stores is never held
        on_started=lambda entry, started: None,
    )
    async with asyncio.TaskGroup() as tasks:
        background.attach(tasks)
        beside = [
            tasks.create_task(broker.closed(), name="broker-closed"),
            tasks.create_task(in_flight.run(), name="in-flight"),
            tasks.create_task(roster.run(), name="roster"),
        ]
        try:
            await roster.ready.wait()
            yield Runner(broker, catalog, in_flight, gateway)
        finally:
            background.attach(None)
            for task in beside:
                task.cancel()
            await catalog.close()
