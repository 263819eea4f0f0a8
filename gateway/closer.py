"""Ending a response from outside its writer: ``Closed`` on its log, and a hint that makes it quick."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
import nats.errors

from broker import subjects
from broker.connection import Broker
from broker.jetstream import ApiError
from broker.replylog import ReplyLog
from schemas.errors import HeadraceError
from schemas.ids import ResponseId
from schemas.job import Job
from schemas.reply import Closed

log = logging.getLogger(__name__)

PAUSE_S = 0.5
LATEST_S = 60.0  # past the deadline by so much, nobody needs it any more


async def close(broker: Broker, job: Job, closed: Closed) -> None:
    """Raises ``HeadraceError(broker_unavailable)``: it may or may not be stored."""
    await ReplyLog(broker, job.gateway, job.response, job.session).close(closed)
    await hint(broker, job.response)


async def close_surely(
    broker: Broker,
    job: Job,
    closed: Closed,
    needed: Callable[[], bool],
    *,
    ids_of: Callable[[], tuple[int, ...] | None] = lambda: None,
) -> None:
    """Until it is stored, however long the broker is away, or until it is not ``needed`` (asked right before
    each try). ``ids_of``: what it repeats of a completion that no writer of this log made. Raises
    ``BrokerClosed``."""
    while True:
        await broker.wait_connected()
        if not needed():
            return
        try:
            await close(broker, job, msgspec.structs.replace(closed, ids=ids_of()))
        except (HeadraceError, ApiError) as error:
            log.warning("%s cannot be closed yet: %s", job.response, error)
            await asyncio.sleep(PAUSE_S)
        else:
            return


def is_of_use(job: Job) -> bool:
    """Whether a worker may still be at work on it, or take it up."""
    return time.time() < job.deadline_unix_ms / 1000 + LATEST_S


async def hint(broker: Broker, response: ResponseId) -> None:
    """Tell the worker at once; without it, it finds out at its next look at the lease."""
    try:
        await broker.nc.publish(subjects.cancel(response), b"")
    except nats.errors.Error as error:
        log.debug("no hint for %s: %s", response, error)
