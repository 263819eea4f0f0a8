"""What a reply log tells of how a response went: its writers, its seams, its tokens over time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from broker.jetstream import StoredMessage
from broker.log_reader import LogEnd, LogReader
from broker.replylog import decode_stored
from broker.stages import Parts, StageClock, whole
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    Handoff,
    Joined,
    Parted,
    ReplyMessage,
    Started,
    Tokens,
    Usage,
)

PACE_COLUMNS = 48


class Attempt(msgspec.Struct, kw_only=True):
    """One writer's part. ``first_token_ms``: from its ``Started`` to its first new token. ``silence_ms``:
    what lay between the last news of the writer before it and its own first new token. ``ended``: finished,
    failed, closed, handed off, replaced, or empty while it writes."""

    number: int
    worker: str
    fence: int
    delivery: int
    started_unix_ms: float
    messages: int = 0
    tokens: int = 0
    first_token_ms: float | None = None
    last_token_unix_ms: float | None = None
    silence_ms: float | None = None
    ended: str = ""


class Seam(msgspec.Struct, frozen=True, kw_only=True):
    """A message at which something changed."""

    at_unix_ms: float
    seq: int
    stream: str
    what: str
    text: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """``kind``: completed, incomplete, failed or cancelled. ``by``: the message that said so."""

    kind: str
    by: str
    at_unix_ms: float
    tokens: int
    reason: str = ""
    code: str | None = None
    message: str = ""
    usage: Usage | None = None


class TokenPace(msgspec.Struct, frozen=True, kw_only=True):
    """``per_s``: between the first message with tokens and the last. ``columns``: the tokens of equal spans
    of that time. ``longest_gap_ms``: between two messages with new tokens, the later of which began with
    token ``longest_gap_token``."""

    tokens: int = 0
    messages: int = 0
    per_s: float | None = None
    longest_gap_ms: float | None = None
    longest_gap_token: int | None = None
    columns: tuple[int, ...] = ()


@dataclass(slots=True)
class LogFacts:
    messages: int = 0
    undecodable: int = 0
    head_is_gone: bool = False
    outcome: Outcome | None = None
    ended_unix_ms: float | None = None
    queued_unix_ms: float | None = None  # when the job was stored, as its first writer told
    leader: str | None = None
    attempts: tuple[Attempt, ...] = ()
    pace: TokenPace = field(default_factory=TokenPace)
    seams: tuple[Seam, ...] = ()
    _steps: list[_Step] = field(default_factory=list)
    _engine_queue_ms: float | None = None

    def time(
        self, until: float, queued: float, received: float, edge_ms: float, *, held: bool
    ) -> tuple[float, Parts]:
        """Where it went, from the request to ``until``: the same figures as a gateway's."""
        clock = StageClock()
        for step in self._steps:
            if step.at > until:
                break
            if step.started is None:
                clock.tokens(step.at)
            else:
                clock.started(step.at, step.started.queued_unix_ms or queued)
        stages = clock.ended(until, self._engine_queue_ms)
        spent = until - queued if stages is None else stages.sum_ms
        total_ms = max(until - received, edge_ms + spent)
        return total_ms, whole(total_ms, edge_ms, stages, held=held)


@dataclass(frozen=True, slots=True)
class _Step:
    """A claim, or new tokens; ``total``: how many there were then."""

    at: float
    total: int
    started: Started | None = None


def read_log(log: Sequence[StoredMessage], *, now_unix_ms: float) -> LogFacts:
    facts, reader, reading = LogFacts(messages=len(log)), LogReader(), _Reading()
    for item in log:
        message = decode_stored(item)
        if message is None:
            facts.undecodable += 1
            continue
        before, was_over = len(reader.ids), reader.end is not None
        if reader.last_seq == 0:
            facts.head_is_gone = _is_behind_the_head(message)
        step = reader.feed(item.seq, message)
        if was_over:  # of tokens that is nothing special: their writer hears of the end a moment later
            if not isinstance(message, Tokens):
                reading.seam(item, "late", f"{type(message).__name__} behind the end counts for nothing")
            continue
        if step.started is not None:
            reading.started(item, step.started, delivered_before=reader.attempts > 1)
            facts.queued_unix_ms = facts.queued_unix_ms or step.started.queued_unix_ms or None
        if step.new_ids:
            reading.tokens(item, before, len(reader.ids))
        reading.message(item, message, is_writers=getattr(message, "fence", None) == reader.fence)
        if step.end is not None:
            facts.ended_unix_ms = reading.end(item, step.end)
            facts.outcome = _outcome(step.end, facts.ended_unix_ms)
            if isinstance(message, Finished):
                facts._engine_queue_ms = message.timings.engine_queue_ms
    facts.leader = reader.leader
    facts.attempts = tuple(reading.attempts)
    facts.seams = tuple(reading.seams)
    facts._steps = reading.steps
    facts.pace = _pace(reading.steps, facts.outcome)
    return facts


def _is_behind_the_head(first: ReplyMessage) -> bool:
    """A log begins with a first claim, or with what a gateway says of a response without a worker."""
    match first:
        case Started():
            return first.attempt > 1
        case Joined() | Parted() | Closed():
            return False
        case _:
            return True


class _Reading:
    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.seams: list[Seam] = []
        self.steps: list[_Step] = []
        self._total = 0
        self._heard: float | None = None  # the last news of the present writer

    def started(self, item: StoredMessage, message: Started, *, delivered_before: bool) -> None:
        if delivered_before and self.attempts and not self.attempts[-1].ended:
            self.attempts[-1].ended = "replaced"
        self.steps.append(_Step(item.stored_unix_ms, self._total, message))
        self.attempts.append(
            Attempt(
                number=message.attempt,
                worker=message.worker,
                fence=item.seq,
                delivery=message.delivered,
                started_unix_ms=item.stored_unix_ms,
            )
        )
        goes_on = f", goes on behind {self._total} tokens" if self._total else ""
        self.seam(item, "started", f"attempt {message.attempt} by {message.worker}{goes_on}")

    def tokens(self, item: StoredMessage, before: int, after: int) -> None:
        at, self._total = item.stored_unix_ms, after
        self.steps.append(_Step(at, after))
        if not self.attempts:
            return
        attempt = self.attempts[-1]
        if attempt.first_token_ms is None:
            attempt.first_token_ms = at - attempt.started_unix_ms
            if self._heard is not None and len(self.attempts) > 1:
                attempt.silence_ms = at - self._heard
            self.seam(item, "first token" if before == 0 else "goes on", f"token {before + 1}")
        attempt.tokens += after - before
        attempt.last_token_unix_ms = self._heard = at

    def message(self, item: StoredMessage, message: ReplyMessage, *, is_writers: bool) -> None:
        if is_writers and self.attempts:
            self.attempts[-1].messages += 1
        match message:
            case Started():
                self._heard = self._heard or item.stored_unix_ms
            case Handoff():
                if is_writers and self.attempts:
                    self.attempts[-1].ended = "handed off"
                self.seam(item, "handed off", f"fence {message.fence} stops of its own will")
            case Joined():
                self.seam(item, "joined", f"its tokens are those of {message.leader}")
            case Parted():
                self.seam(item, "parted", f"goes on alone behind {len(message.ids)} tokens")
            case Finished() | Failed() if not is_writers:
                self.seam(
                    item,
                    "fenced off",
                    f"{type(message).__name__} of fence {message.fence} counts for nothing",
                )

    def end(self, item: StoredMessage, end: LogEnd) -> float:
        """When the response was over: at a stop string's last token, which its Closed only makes known."""
        message, at = end.message, item.stored_unix_ms
        ended = {Finished: "finished", Failed: "failed", Closed: "closed"}[type(message)]
        if self.attempts and not self.attempts[-1].ended:
            self.attempts[-1].ended = ended
        self.seam(item, ended, _words(end))
        if isinstance(message, Closed) and message.reason == "stop":
            at = next((s.at for s in self.steps if s.started is None and s.total >= end.total), at)
        return at

    def seam(self, item: StoredMessage, what: str, text: str) -> None:
        self.seams.append(
            Seam(at_unix_ms=item.stored_unix_ms, seq=item.seq, stream="REPLIES", what=what, text=text)
        )


def _words(end: LogEnd) -> str:
    message = end.message
    match message:
        case Finished():
            return f"{end.total} tokens, {message.reason}"
        case Failed():
            return f"{message.code}: {message.message}"
        case Closed():
            return " ".join(filter(None, (message.reason, message.code, f"at {end.total} tokens")))


_KINDS = {"cancelled": "cancelled", "deadline": "failed", "refused": "failed"}


def _outcome(end: LogEnd, at: float) -> Outcome:
    message = end.message
    found = Outcome(kind="completed", by=type(message).__name__.lower(), at_unix_ms=at, tokens=end.total)
    replace = msgspec.structs.replace
    match message:
        case Failed():
            return replace(found, kind="failed", code=message.code, message=message.message)
        case Finished():
            reason: str = message.reason
        case Closed():
            reason = message.finish or message.reason
            found = replace(
                found, kind=_KINDS.get(reason, found.kind), code=message.code, message=message.message
            )
    kind = "incomplete" if reason in ("length", "content_filter") else found.kind
    return replace(found, kind=kind, reason=reason, usage=message.usage)


def _pace(steps: Sequence[_Step], outcome: Outcome | None) -> TokenPace:
    news = [step for step in steps if step.started is None]
    counted = outcome.tokens if outcome is not None else news[-1].total if news else 0
    if not news:
        return TokenPace(tokens=counted)
    first, last = news[0], news[-1]
    span_ms = last.at - first.at
    longest = max(((b.at - a.at, a.total + 1) for a, b in pairwise(news)), default=None)
    columns = [0] * (PACE_COLUMNS if span_ms > 0 else 0)
    for before, step in pairwise(news):
        if columns:
            column = int((step.at - first.at) / span_ms * PACE_COLUMNS)
            columns[min(PACE_COLUMNS - 1, column)] += step.total - before.total
    return TokenPace(
        tokens=counted,
        messages=len(news),
        per_s=(last.total - first.total) / span_ms * 1000 if span_ms > 0 else None,
        longest_gap_ms=None if longest is None else longest[0],
        longest_gap_token=None if longest is None else longest[1],
        columns=tuple(columns),
    )
