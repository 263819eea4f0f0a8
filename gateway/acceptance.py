"""How a response is accepted: its job is stored, and where no worker begins its log, the log's first message.

Must not know why a response has the tokens of another.
"""

from __future__ import annotations

import asyncio

from broker.connection import Broker, NoAnswer
from broker.jobs import find_job, publish_job
from broker.replylog import ReplyLog
from schemas.job import Job
from schemas.reply import Closed, Joined

Opening = Joined | Closed  # the first message of a log that no worker begins


class NotFirst(Exception):
    """Another request with the same idempotency key has just been accepted."""


async def accept(broker: Broker, job: Job, opening: Opening | None) -> tuple[int, int | None]:
    """The sequences of the job in the queue and of ``opening`` in the log; the latter is None where there is
    none, or where the log has a first message already.
    Of two jobs under one key the first counts, so it is stored before its log. Otherwise both are sent at
    once, the log's message first on the wire: a log without a job is noise. Raises ``NotFirst``,
    ``HeadraceError``, ``ApiError``, when the outcome of both is known."""
    if opening is None or job.request_digest:
        stored = await publish_job(broker, job, only_first=bool(job.request_digest))
        if stored.duplicate and job.request_digest and await _is_anothers(broker, job):
            raise NotFirst
        return stored.seq, None if opening is None else await _open_log(broker, job, opening)
    outcomes = await asyncio.gather(
        _open_log(broker, job, opening), publish_job(broker, job), return_exceptions=True
    )
    for outcome in reversed(outcomes):
        if isinstance(outcome, BaseException):
            raise outcome
    log_seq, enqueued = outcomes
    assert not isinstance(log_seq, BaseException)
    assert not isinstance(enqueued, BaseException)
    return enqueued.seq, log_seq


async def _open_log(broker: Broker, job: Job, opening: Opening) -> int | None:
    return await ReplyLog(broker, job.gateway, job.response, job.session).share(opening, behind=0)


async def _is_anothers(broker: Broker, job: Job) -> bool:
    """What was found under the same idempotency key may be this very job, whose first ack was lost. Not an
    earlier try of this gateway's, which it had given up: nobody has followed that log from its beginning."""
    first = await find_job(broker, job.response)
    if first is None:  # a replica that lags
        raise NoAnswer("timeout", "job")
    return _attempt(first) != _attempt(job)


def _attempt(job: Job) -> tuple[str, str, int]:
    return job.gateway, job.request_digest, job.created_unix_ms
