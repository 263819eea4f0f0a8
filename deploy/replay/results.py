"""What became of each replay, of all together, and what a script is told. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec

from deploy.replay.account import Account
from deploy.replay.comparison import Comparison
from schemas.errors import ERRORS, QueueAction
from schemas.ids import ResponseId

State = Literal["ran", "refused", "interrupted", "lost"]

SAME, DIFFERENT, NOT_ALL_RAN, INTERRUPTED = 0, 1, 3, 130


class Side(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An account without its text. ``context``: the text around where the two part."""

    outcome: str
    tokens: int
    reason: str | None = None
    code: str | None = None
    attempts: int = 0
    cached_tokens: int = 0
    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None
    ids: tuple[int, ...] | None = None
    context: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``response``: the new one's id, None where none was begun. ``sampled``: another answer each time is to
    be expected, as it has a temperature and no seed. ``problem``: why it did not run."""

    origin: ResponseId
    response: ResponseId | None = None
    model: str
    onto: str | None = None
    tenant: str
    state: State
    problem: str | None = None
    sampled: bool = False
    original: Side | None = None
    replay: Side | None = None
    comparison: Comparison | None = None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """``ended_badly``: replays that ran and neither completed nor came to a limit. Medians are of those with
    both times."""

    selected: int
    ran: int
    same: int
    continues: int
    different: int
    unknown: int
    ended_badly: int
    refused: int
    lost: int
    interrupted: int
    ttft_ms: tuple[float, float] | None
    total_ms: tuple[float, float] | None


def side_of(account: Account, around: tuple[tuple[int, ...], str] | None = None) -> Side:
    """``around``: ids and text to show."""
    return Side(
        outcome=account.outcome,
        reason=account.reason,
        code=account.code,
        tokens=len(account.ids),
        attempts=account.attempts,
        cached_tokens=account.cached_tokens,
        queue_ms=account.queue_ms,
        ttft_ms=account.ttft_ms,
        total_ms=account.total_ms,
        ids=around[0] if around else None,
        context=around[1] if around else None,
    )


def summarize(results: Sequence[Result], selected: int) -> Summary:
    answers = [result.comparison.answer for result in results if result.comparison is not None]
    states = [result.state for result in results]
    return Summary(
        selected=selected,
        ran=states.count("ran"),
        same=answers.count("same"),
        continues=answers.count("continues"),
        different=answers.count("different"),
        unknown=answers.count("unknown"),
        ended_badly=sum(map(ended_badly, results)),
        refused=states.count("refused"),
        lost=states.count("lost"),
        interrupted=selected - len(results) + states.count("interrupted"),
        ttft_ms=_medians(
            [(r.original.ttft_ms, r.replay.ttft_ms) for r in results if r.original and r.replay]
        ),
        total_ms=_medians(
            [(r.original.total_ms, r.replay.total_ms) for r in results if r.original and r.replay]
        ),
    )


def ended_badly(result: Result) -> bool:
    return result.replay is not None and result.replay.outcome not in ("completed", "incomplete")


def got_through(result: Result) -> bool:
    """Nothing is lost with the original's dead letter: there is an answer, or another letter."""
    if result.replay is None:
        return False
    dead = result.replay.code in ERRORS and ERRORS[result.replay.code].queue is QueueAction.DEAD
    return dead or not ended_badly(result)


def exit_code(summary: Summary) -> int:
    if summary.interrupted:
        return INTERRUPTED
    if summary.refused or summary.lost or summary.ended_badly:
        return NOT_ALL_RAN
    return DIFFERENT if summary.different else SAME


def _medians(pairs: Sequence[tuple[float | None, float | None]]) -> tuple[float, float] | None:
    both = [(before, after) for before, after in pairs if before is not None and after is not None]
    if not both:
        return None
    return median(before for before, _ in both), median(after for _, after in both)
