"""Which stored jobs are meant, and how times are said on a command line. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

import msgspec

from broker.log_reader import LogReader
from gateway.closer import LATEST_S
from gateway.outcome import verdict
from schemas.ids import ResponseId
from schemas.job import Job, Priority

Ending = Literal["completed", "incomplete", "failed", "cancelled", "open"]
Outcome = Literal["completed", "incomplete", "failed", "cancelled", "open", "dead"]

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Times are unix milliseconds. ``model``: a name or a token. ``outcomes``: empty for any; ``limit``: so
    many, the oldest first."""

    responses: tuple[ResponseId, ...] = ()
    since_unix_ms: int | None = None
    until_unix_ms: int | None = None
    model: str | None = None
    tenant: str | None = None
    priority: Priority | None = None
    outcomes: frozenset[Outcome] = frozenset()
    limit: int = 1000

    @property
    def only_dead(self) -> bool:
        return self.outcomes == {"dead"}

    def takes(self, job: Job, at_unix_ms: int) -> bool:
        """Whatever its outcome."""
        return (
            self.takes_time(at_unix_ms)
            and self.model in (None, job.model_name, job.model)
            and self.tenant in (None, job.tenant)
            and self.priority in (None, job.priority)
        )

    def takes_time(self, at_unix_ms: int) -> bool:
        after = self.since_unix_ms is None or at_unix_ms >= self.since_unix_ms
        return after and (self.until_unix_ms is None or at_unix_ms < self.until_unix_ms)


def parse_when(text: str, now_unix_ms: int) -> int:
    """``90s``, ``1h30m``, ``2d``: so long ago; else an ISO time, which is UTC where it names no zone. Unix
    milliseconds. Raises ``ValueError``."""
    if _DURATION.fullmatch(text):
        ago_s = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))
        return now_unix_ms - int(ago_s * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a time like 2026-07-31T14:00Z nor a duration like 1h30m"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def outcome_of(job: Job, log: LogReader, now_unix_ms: int) -> Ending | None:
    """By its log alone; None: the log is not kept any more."""
    if log.end is not None:
        return verdict(job, log.end).outcome
    if log.last_seq or now_unix_ms < job.deadline_unix_ms + LATEST_S * 1000:
        return "open"
    return None
