"""Finds the stored jobs that are meant: in JOBS, by their logs in REPLIES, and among the dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec

from broker import jetstream, subjects
from broker.connection import Broker, unix_ms
from broker.history import read_stored
from broker.jetstream import StoredMessage
from broker.jobs import find_job
from broker.log_reader import LogReader
from broker.replylog import decode_stored
from deploy.replay.letters import Letter, job_in_letter, letters, newest_letter
from deploy.replay.wanted import Outcome, Wanted, outcome_of
from schemas import codec
from schemas.errors import HeadraceError
from schemas.ids import ResponseId
from schemas.job import Job

PAGE = 64  # jobs of one answer; each may have a prompt of a megabyte


@dataclass(frozen=True, slots=True)
class Found:
    """``job`` is without its prompt: many are found, and few run at once. ``outcome``: None where it is not
    known, because it was not asked for or nothing that tells it is kept."""

    job: Job
    prompt_tokens: int
    stored_unix_ms: float
    letter: Letter | None = None
    outcome: Outcome | None = None

    @property
    def response(self) -> ResponseId:
        return self.job.response


@dataclass(slots=True)
class Finding:
    """``unreadable``: what was meant and cannot be run, and why. ``more``: the limit was reached."""

    found: list[Found] = field(default_factory=list)
    unreadable: list[tuple[ResponseId, str]] = field(default_factory=list)
    more: bool = False


async def find(broker: Broker, wanted: Wanted, *, with_outcomes: bool) -> Finding:
    """``with_outcomes``: also where none is asked for. Raises ``HeadraceError``, ``ApiError``."""
    finding = Finding()
    seen: set[ResponseId] = set()
    async for each in _candidates(broker, wanted, finding):
        if each.response in seen:  # a held job that was put into the queue is stored twice
            continue
        if wanted.outcomes or with_outcomes:
            each = await _with_outcome(broker, each)
            if wanted.outcomes and each.outcome not in wanted.outcomes:
                continue
        if len(finding.found) == wanted.limit:
            finding.more = True
            break
        seen.add(each.response)
        finding.found.append(each)
    return finding


async def whole_job(broker: Broker, found: Found) -> Job:
    """With its prompt. Raises ``HeadraceError(response_not_found)`` where it is no longer kept."""
    job = await find_job(broker, found.response)
    if job is None and found.letter is not None:
        job = await job_in_letter(broker, found.letter)
    if job is None:
        raise HeadraceError("response_not_found", "The job is no longer kept.")
    return job


async def _candidates(broker: Broker, wanted: Wanted, finding: Finding) -> AsyncIterator[Found]:
    if wanted.responses:
        for response in wanted.responses:
            found = await _by_id(broker, response, finding)
            if found is not None:
                yield found
        return
    dead = {letter.response: letter async for letter in letters(broker)}
    if wanted.only_dead:
        for letter in dead.values():
            found = await _of_letter(broker, letter, finding, wanted)
            if found is not None:
                yield found
        return
    # Replays are taken by their ids alone: an hour that is replayed twice is that hour twice.
    async for stored in _jobs_since(broker, wanted):
        job = _decode(stored)
        if job is not None and job.replay_of is None and wanted.takes(job, stored.stored_unix_ms):
            yield _found(job, stored.stored_unix_ms, dead.get(job.response))


async def _by_id(broker: Broker, response: ResponseId, finding: Finding) -> Found | None:
    letter = await newest_letter(broker, response)
    stored = await jetstream.last_messages(broker, subjects.JOBS, [subjects.job_by_response(response)])
    job = _decode(stored[-1]) if stored else None
    if job is not None:
        return _found(job, stored[-1].stored_unix_ms, letter)
    if letter is not None:
        return await _of_letter(broker, letter, finding, Wanted())
    finding.unreadable.append((response, "no job of it is kept (JOBS keeps them for a day)"))
    return None


async def _of_letter(broker: Broker, letter: Letter, finding: Finding, wanted: Wanted) -> Found | None:
    """The letter outlives the job in JOBS, which outlives one that was cut."""
    job, prompt_tokens = letter.job, letter.prompt_tokens
    if job is None:
        job = await find_job(broker, letter.response)
        prompt_tokens = 0 if job is None else len(job.prompt_ids)
    if job is None:
        if wanted.takes_time(letter.stored_unix_ms):
            finding.unreadable.append((letter.response, f"its job cannot be read ({letter.code})"))
        return None
    if not wanted.takes(job, letter.stored_unix_ms):
        return None
    bare = msgspec.structs.replace(job, prompt_ids=())
    return Found(bare, prompt_tokens, job.created_unix_ms, letter)


async def _jobs_since(broker: Broker, wanted: Wanted) -> AsyncIterator[StoredMessage]:
    filter_ = subjects.jobs_of_class(wanted.priority)
    since = wanted.since_unix_ms or 0
    page, more = await jetstream.messages_since(broker, subjects.JOBS, filter_, since, PAGE)
    while page:
        for stored in page:
            if wanted.until_unix_ms is not None and stored.stored_unix_ms >= wanted.until_unix_ms:
                return
            yield stored
        if not more:
            return
        page, more = await jetstream.next_messages(broker, subjects.JOBS, filter_, page[-1].seq + 1, PAGE)


async def _with_outcome(broker: Broker, found: Found) -> Found:
    outcome: Outcome | None = "dead"
    if found.letter is None:
        log = LogReader()
        job = found.job
        names = subjects.reply_log(job.gateway, job.response, job.session)
        for item in await read_stored(broker, subjects.REPLIES, names):
            if (message := decode_stored(item)) is not None:
                log.feed(item.seq, message)
        outcome = outcome_of(found.job, log, unix_ms())
    return Found(found.job, found.prompt_tokens, found.stored_unix_ms, found.letter, outcome)


def _found(job: Job, stored_unix_ms: float, letter: Letter | None) -> Found:
    bare = msgspec.structs.replace(job, prompt_ids=())
    return Found(bare, len(job.prompt_ids), stored_unix_ms, letter)


def _decode(stored: StoredMessage) -> Job | None:
    try:
        return codec.decode_job(stored.data)
    except msgspec.DecodeError:
        return None
