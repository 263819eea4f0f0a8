"""A job that no worker will try again, with what became of each try: the making of a dead letter."""

from __future__ import annotations

from datetime import UTC, datetime

from broker import jetstream, subjects
from broker.connection import Broker, unix_ms
from broker.jobs import bury
from broker.pull import Delivery
from broker.replylog import ReplyLog, decode_stored
from schemas.ids import ModelToken, ResponseId
from schemas.job import DeadLetter
from schemas.reply import Closed, Handoff, Started


async def bury_job(
    broker: Broker,
    model: ModelToken,
    response: ResponseId,
    job: Delivery,
    reply_log: ReplyLog | None,
    code: str,
    message: str,
) -> None:
    """``reply_log`` None: it is not known, as the job could not be read. Raises ``HeadraceError``,
    ``ApiError``."""
    letter = DeadLetter(
        response=response,
        code=code,
        message=message,
        job=job.data,
        job_subject=job.subject,
        history=() if reply_log is None else await _history(broker, reply_log),
        died_unix_ms=unix_ms(),
    )
    await bury(broker, model, letter)


async def _history(broker: Broker, reply_log: ReplyLog) -> tuple[str, ...]:
    """The fences of the log, a line each."""
    stored = jetstream.messages(broker, subjects.REPLIES, reply_log.fences_subject)
    return tuple([_describe(item) async for item in stored])


def _describe(item: jetstream.StoredMessage) -> str:
    when = datetime.fromtimestamp(item.stored_unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
    match decode_stored(item):
        case Started() as started:
            return f"{when} attempt {started.attempt} by {started.worker}, delivery {started.delivered}"
        case Handoff():
            return f"{when} handed off"
        case Closed() as closed:
            return f"{when} closed: {closed.reason} {closed.code or ''}".rstrip()
        case other:
            return f"{when} {type(other).__name__}"
