"""What the end of a reply log means to a client. Pure; the same on every gateway.

A stop string found in the text overrides whatever ended the log after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from broker.log_reader import LogEnd
from gateway.generation import Outcome
from schemas.errors import ERRORS
from schemas.job import Job
from schemas.reply import Closed, Failed, Finished, FinishReason, Timings, Usage


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    total: int
    usage: Usage
    reason: FinishReason | Literal["cancelled", "deadline"] | None = None
    code: str | None = None
    message: str = ""
    timings: Timings | None = None


def stopped(job: Job, total: int, end: LogEnd | None) -> Verdict:
    """A stop string was completed by token ``total``."""
    usage = _usage(job, total, end)
    timings = end.message.timings if end and isinstance(end.message, Finished) else None
    return Verdict("completed", total, usage, reason="stop", timings=timings)


def verdict(job: Job, end: LogEnd) -> Verdict:
    message, total, usage = end.message, end.total, _usage(job, end.total, end)
    match message:
        case Finished(reason=("length" | "content_filter") as reason):
            return Verdict("incomplete", total, usage, reason=reason, timings=message.timings)
        case Finished():
            return Verdict("completed", total, usage, reason=message.reason, timings=message.timings)
        case Failed():
            return _failed(total, usage, message.code, message.message)
        case Closed(reason="cancelled"):
            return Verdict("cancelled", total, usage, reason="cancelled")
        case Closed(reason="deadline"):
            text = message.message or "The response's deadline passed before it was complete."
            return Verdict("failed", total, usage, reason="deadline", code="deadline_exceeded", message=text)
        case Closed(reason="refused"):
            return _failed(total, usage, message.code or "internal_error", message.message)
        case Closed(finish=("length" | "content_filter") as reason):
            return Verdict("incomplete", total, usage, reason=reason)
        case Closed():
            return Verdict("completed", total, usage, reason=message.finish or "stop")


def _failed(total: int, usage: Usage, code: str, message: str) -> Verdict:
    known = code if code in ERRORS else "internal_error"  # written by a worker of another version
    return Verdict("failed", total, usage, code=known, message=message or f"The response failed: {code}.")


def _usage(job: Job, total: int, end: LogEnd | None) -> Usage:
    told = end.message.usage if end is not None and isinstance(end.message, (Finished, Closed)) else None
    return Usage(
        prompt_tokens=len(job.prompt_ids),
        cached_tokens=told.cached_tokens if told is not None else 0,
        completion_tokens=total,
    )
