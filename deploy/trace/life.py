"""The life of one response as its stored messages tell it. Pure: messages and the time in, facts out.

It reads a log by the same rules as gateways and workers (broker/REPLYLOG.md), and takes the time apart by
the same clock (broker/stages.py). No text of a prompt or an answer is in it. Must not know how it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from broker.jetstream import StoredMessage
from broker.stages import Parts
from deploy.trace.job_facts import JobFacts, Letter, read_jobs, read_letter
from deploy.trace.log_facts import Attempt, LogFacts, Outcome, Seam, TokenPace, read_log
from schemas.ids import ResponseId
from schemas.reply import DELETED

LATEST_MS = 60_000  # past its deadline by so much, nothing more is written to a log

State = Literal["waiting", "running", "ended", "unknown"]


class NothingKept(Exception):
    """The broker holds no message of this response."""


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """Times are unix milliseconds of the store. ``parts``: where the time went, of one that is not over so
    far; None where too little is kept. ``state`` unknown: its log is gone. ``missing``: what is kept no
    longer, or cannot be read."""

    response: ResponseId
    state: State
    looked_unix_ms: float
    job: JobFacts | None
    outcome: Outcome | None
    parts: Parts | None
    total_ms: float | None
    attempts: tuple[Attempt, ...]
    pace: TokenPace
    seams: tuple[Seam, ...]
    dead: Letter | None
    missing: tuple[str, ...]


def read_life(
    response: ResponseId,
    jobs: Sequence[StoredMessage],
    log: Sequence[StoredMessage],
    dead: Sequence[StoredMessage],
    *,
    now_unix_ms: float,
) -> Life:
    """All stored messages of one response, of each stream in its order. Raises ``NothingKept``."""
    if not (jobs or log or dead):
        raise NothingKept
    job = read_jobs(jobs) if jobs else None
    letter = read_letter(dead[-1]) if dead else None
    facts = read_log(log, now_unix_ms=now_unix_ms)
    state = _state(job, facts, now_unix_ms)
    total_ms, parts = _time(job, facts, state, now_unix_ms)
    return Life(
        response=response,
        state=state,
        looked_unix_ms=now_unix_ms,
        job=job,
        outcome=facts.outcome,
        parts=parts,
        total_ms=total_ms,
        attempts=facts.attempts,
        pace=facts.pace,
        seams=_seams(job, facts, letter),
        dead=letter,
        missing=_missing(job, facts, state),
    )


def _state(job: JobFacts | None, log: LogFacts, now_unix_ms: float) -> State:
    if log.outcome is not None:
        return "ended"
    over = job is None or (job.deadline_unix_ms or 0) + LATEST_MS < now_unix_ms
    if not log.messages:
        return "unknown" if over else "waiting"
    if over and job is not None:
        return "unknown"
    return "running" if log.attempts or log.leader else "waiting"


def _time(
    job: JobFacts | None, log: LogFacts, state: State, now_unix_ms: float
) -> tuple[float | None, Parts | None]:
    until = log.ended_unix_ms if state == "ended" else now_unix_ms
    if state == "unknown" or until is None:
        return None, None
    queued = job.stored_unix_ms if job is not None else log.queued_unix_ms
    if queued is None:
        return None, None
    received = job.received_unix_ms if job is not None else None
    return log.time(
        until,
        queued,
        received or queued,
        0.0 if job is None else job.edge_ms,
        held=job is not None and job.held,
    )


def _seams(job: JobFacts | None, log: LogFacts, letter: Letter | None) -> tuple[Seam, ...]:
    seams = list(log.seams)
    if job is not None:
        seams += [
            Seam(at_unix_ms=copy.stored_unix_ms, seq=copy.seq, stream="JOBS", what="job", text=copy.subject)
            for copy in job.copies
        ]
    if letter is not None:
        text = f"{letter.code}: {letter.message}"
        seams.append(
            Seam(
                at_unix_ms=letter.stored_unix_ms, seq=letter.seq, stream="DEAD", what="dead letter", text=text
            )
        )
    return tuple(sorted(seams, key=lambda seam: (seam.at_unix_ms, seam.seq)))


def _missing(job: JobFacts | None, log: LogFacts, state: State) -> tuple[str, ...]:
    missing: list[str] = []
    if log.outcome is not None and log.outcome.code == DELETED:
        missing.append("its client has deleted it")
    if job is None:
        missing.append("JOBS keeps its job no longer: what was asked, and its edge time, are not known")
    elif job.unreadable:
        missing.append(f"its job does not decode ({job.unreadable}): only its headers are known")
    if not log.messages and state == "unknown":
        missing.append("REPLIES keeps its log no longer: how it went is not known")
    elif log.head_is_gone:
        missing.append("the beginning of its log is gone: REPLIES has dropped it")
    if log.outcome is None and log.messages and state == "unknown":
        missing.append("its log has no end, and its deadline is over: nothing writes to it any more")
    if log.leader is not None:
        missing.append(
            f"its tokens are those of {log.leader}: `headrace trace {log.leader}` tells how they came"
        )
    if log.undecodable:
        missing.append(f"{log.undecodable} messages of its log do not decode")
    return tuple(missing)
