"""Reads a response's reply log: stored messages in, tokens and the one end out. Pure: no I/O, no clock.

The rules (numbers as in broker/REPLYLOG.md): the stored order is the only order (1); only the latest
Started's tokens count (2); offsets decide what is new (5); the first valid terminal wins (4).
Whoever feeds the same messages in the same order gets the same tokens, on any machine, at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from schemas.ids import Fence, ResponseId
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    Handoff,
    Joined,
    Parted,
    ReplyMessage,
    Started,
    TokenLogprobs,
    Tokens,
)

POISON_BARREN_FENCES = 3  # attempts in a row that brought no new token
POISON_FENCES = 8  # attempts in all


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The terminal message, where it stands in the stream, and how many tokens count."""

    message: Finished | Failed | Closed
    seq: int
    total: int


class Step(msgspec.Struct, frozen=True):
    """What one message changed. ``gap``: tokens are missing before this message's; they come again when
    the writer repeats itself, and at the latest in ``Finished``. A msgspec struct because there is one for
    each message: 0.15 us where a frozen dataclass takes 0.8."""

    new_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprobs] | None = None
    started: Started | None = None
    end: LogEnd | None = None
    gap: bool = False


_NOTHING = Step()
_GAP = Step(gap=True)
_UNKNOWN = TokenLogprobs(-9999.0)


class LogReader:
    """``ids``: the completion so far. ``logprobs`` is as long as ``ids`` where the writer sends them, else
    empty; one that is not known is -9999, as OpenAI has it. ``fence``: the current writer's, None before
    the first Started. ``leader``: the response whose tokens these are, while that is so (rule 9);
    ``shared_seq``: the last message that said whose they are, 0 where none did; ``parted``: it said that they
    are nobody else's any more."""

    __slots__ = (
        "attempts",
        "barren_fences",
        "end",
        "fence",
        "fences",
        "handed_off",
        "ids",
        "last_seq",
        "last_started",
        "leader",
        "logprobs",
        "parted",
        "shared_seq",
    )

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.fence: Fence | None = None
        self.last_seq = 0
        self.last_started: Started | None = None
        self.leader: ResponseId | None = None
        self.parted = False
        self.shared_seq = 0
        self.attempts = 0
        self.fences = 0  # attempts that no hand-off led to
        self.barren_fences = 0  # of those, since the last new token
        self.handed_off = False
        self.end: LogEnd | None = None

    def feed(self, seq: int, message: ReplyMessage) -> Step:
        """``seq``: the message's stream sequence. What is at or before ``last_seq``, or behind the end,
        changes nothing, so a catch-up and a live feed may overlap."""
        if seq <= self.last_seq or self.end is not None:
            return _NOTHING
        self.last_seq = seq
        match message:
            case Tokens():
                return self._tokens(message)
            case Finished() | Failed():
                return self._terminal(seq, message)
            case Closed():
                return self._closed(seq, message)
            case Started():
                return self._started(seq, message)
            case Handoff():
                if message.fence == self.fence:
                    self.handed_off = True
            case Joined():
                self.leader, self.shared_seq = message.leader, seq
            case Parted():
                self.leader, self.shared_seq, self.parted = None, seq, True
                new = message.ids[len(self.ids) :]
                self._extend(new, None)
                return Step(new_ids=new)
        return _NOTHING

    def lend(self, ids: Sequence[int]) -> None:
        """The next tokens of the leader's log: this log holds them only from its end on, or from where it
        parts from the leader."""
        self.ids.extend(ids)

    def is_poison(self) -> bool:
        """True when another attempt would be one too many (rule 8)."""
        return self.barren_fences >= POISON_BARREN_FENCES or self.fences >= POISON_FENCES

    def _started(self, seq: int, message: Started) -> Step:
        self.fence = Fence(seq)
        self.last_started = message
        self.attempts += 1
        if not self.handed_off:
            self.fences += 1
            self.barren_fences += 1
        self.handed_off = False
        return Step(started=message)

    def _tokens(self, message: Tokens) -> Step:
        if message.fence != self.fence:
            return _NOTHING  # a writer that has been replaced, or that never was
        known = len(self.ids) - message.offset
        if known < 0:
            return _GAP
        if known >= len(message.ids):
            return _NOTHING
        new = message.ids[known:] if known else message.ids
        logprobs = message.logprobs[known:] if message.logprobs is not None else None
        self._extend(new, logprobs)
        return Step(new_ids=new, logprobs=logprobs)

    def _terminal(self, seq: int, message: Finished | Failed) -> Step:
        if message.fence != self.fence:
            return _NOTHING
        new: Sequence[int] = ()
        logprobs: Sequence[TokenLogprobs] | None = None
        if isinstance(message, Finished):
            known = len(self.ids)
            new = message.ids[known:]
            logprobs = message.logprobs[known:] if message.logprobs is not None else None
            self._extend(new, logprobs)
        self.end = LogEnd(message, seq, len(self.ids))
        return Step(new_ids=new, logprobs=logprobs, end=self.end)

    def _closed(self, seq: int, message: Closed) -> Step:
        new = message.ids[len(self.ids) :] if message.ids is not None else ()
        self._extend(new, None)
        # Of what was lent, each reader may have another number; what the message repeats counts for all.
        known = len(self.ids) if self.leader is None else len(message.ids or ())
        total = known if message.total is None else min(message.total, known)
        self.end = LogEnd(message, seq, total)
        return Step(new_ids=new, end=self.end)

    def _extend(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        if not ids:
            return
        if logprobs is not None:
            self.logprobs += [_UNKNOWN] * (len(self.ids) - len(self.logprobs))
            self.logprobs.extend(logprobs)
        elif self.logprobs:
            self.logprobs += [_UNKNOWN] * len(ids)
        self.ids.extend(ids)
        self.barren_fences = 0
