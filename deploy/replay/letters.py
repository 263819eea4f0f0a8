"""Dead letters as an operator sees them: found, shown, taken away. Must not know how a job is run again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import msgspec

from broker import jetstream, subjects
from broker.connection import Broker
from broker.jetstream import StoredMessage
from schemas import codec
from schemas.ids import ModelToken, ResponseId
from schemas.job import DeadLetter, Job

log = logging.getLogger(__name__)

POISON = "poison"
_OF_THE_READING = ("Nats-Num-Pending", "Nats-Last-Sequence")


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """``job``: None where its bytes do not decode, or were cut; without its prompt otherwise. ``seq``: where
    it stands in DEAD. ``headers``: of the letter."""

    response: ResponseId
    subject: str
    seq: int
    stored_unix_ms: int
    code: str
    message: str
    history: tuple[str, ...]
    job: Job | None
    job_bytes: int
    job_subject: str
    prompt_tokens: int
    headers: dict[str, str]

    @property
    def is_poison(self) -> bool:
        return self.code == POISON

    @property
    def attempts(self) -> int:
        return sum(" attempt " in line for line in self.history)

    @property
    def model(self) -> str:
        """Its name, else its token."""
        return self.job.model_name if self.job is not None else self.model_token

    @property
    def model_token(self) -> ModelToken:
        return subjects.parse_dead(self.subject)[0]


async def letters(broker: Broker, response: ResponseId | None = None) -> AsyncIterator[Letter]:
    """All, or a response's, the oldest first. Raises ``HeadraceError``, ``ApiError``."""
    subject = subjects.DEAD_SUBJECTS if response is None else subjects.dead(ModelToken("*"), response)
    async for stored in jetstream.messages(broker, subjects.DEAD, subject):
        yield _read(stored)


async def newest_letter(broker: Broker, response: ResponseId) -> Letter | None:
    """Raises as ``letters``."""
    found = [letter async for letter in letters(broker, response)]
    return found[-1] if found else None


async def job_in_letter(broker: Broker, letter: Letter) -> Job | None:
    """The whole job. None where it does not decode, or the letter has gone."""
    stored = await jetstream.last_message(broker, subjects.DEAD, letter.subject)
    return None if stored is None else _job_of(_decode(stored))


async def drop(broker: Broker, letter: Letter) -> None:
    """It, and what its response has older than it; no newer one. Raises ``HeadraceError``, ``ApiError``."""
    await jetstream.purge(broker, subjects.DEAD, letter.subject, before_seq=letter.seq + 1)


def _read(stored: StoredMessage) -> Letter:
    found = _decode(stored)
    job = _job_of(found)
    return Letter(
        response=subjects.parse_dead(stored.subject)[1],
        subject=stored.subject,
        seq=stored.seq,
        stored_unix_ms=stored.stored_unix_ms,
        code=found.code,
        message=found.message,
        history=found.history,
        job=None if job is None else msgspec.structs.replace(job, prompt_ids=()),
        job_bytes=len(found.job),
        job_subject=found.job_subject,
        prompt_tokens=0 if job is None else len(job.prompt_ids),
        headers={name: value for name, value in stored.headers.items() if name not in _OF_THE_READING},
    )


def _decode(stored: StoredMessage) -> DeadLetter:
    try:
        return codec.decode_dead_letter(stored.data)
    except msgspec.DecodeError as error:
        response = subjects.parse_dead(stored.subject)[1]
        return DeadLetter(
            response=response, code="unreadable", message=str(error), job=b"", job_subject=stored.subject
        )


def _job_of(letter: DeadLetter) -> Job | None:
    try:
        return codec.decode_job(letter.job)
    except msgspec.DecodeError:
        return None
