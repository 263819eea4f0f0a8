"""One accepted response as this gateway sees it: its log, its text, and whoever reads it.

A reader is only a position, so merging is free (a slow reader gets more at once) and a resume is another
position. Must not know how messages arrive, nor how they are shown.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from broker.log_reader import LogEnd, LogReader
from broker.stages import StageClock, whole
from gateway.generation import Ended, Parsed, Queued, Text
from gateway.live_reader import LiveReader
from gateway.outcome import Verdict, stopped, verdict
from gateway.output.pieces import Item
from gateway.rate import Ruling
from gateway.released import Released
from gateway.text import Detokenizer
from schemas.errors import HeadraceError
from schemas.ids import ResponseId, TenantId
from schemas.job import Job
from schemas.reply import ReplyMessage

# what an ended response takes, about
FIXED_BYTES = 4096
TOKEN_BYTES = 100  # an int and its place in a list; a piece of text and its place
LOGPROB_BYTES = 120  # one alternative, or the chosen token's own


def now_ms() -> float:
    return time.time() * 1000


class LiveOwner(Protocol):
    """Who is told what a response needs. Called in the event loop; must not block nor raise."""

    def live_attended(self, live: Live) -> None: ...  # a first reader came

    def live_deserted(self, live: Live) -> None: ...  # the last reader went

    def live_stopped(self, live: Live, total: int) -> None: ...  # a stop string: the log must be closed

    def live_started(self, live: Live) -> None: ...  # called once

    def live_tokens(self, live: Live, count: int) -> None: ...  # new ones that one message brought

    def live_ended(self, live: Live) -> None: ...  # called once

    def live_left(self, live: Live) -> None: ...  # called once: it has ended, and who came to read has left


class Follower(Protocol):
    """Who wants to know that there is news of a response: a client's reader, or a response that joined."""

    def wake(self) -> None: ...


class Live:
    """``text``: all that was released so far. ``ids``: the completion's tokens that count so far.
    ``started``: a worker has (or had) it. ``end``: set once, and last. ``lost``: set instead, where this
    gateway cannot follow it any more: its readers are told so, and may ask again. ``read_tokens``: what the
    reader that is farthest has been given. ``is_own``: this gateway accepted it and reads along, so what
    happens happens now; what is known of another's is when it was stored."""

    def __init__(self, job: Job, detokenizer: Detokenizer, owner: LiveOwner, *, is_own: bool = False) -> None:
        self.job = job
        self.read_tokens = 0
        self.elsewhere = False  # it has, or had, a client at another gateway
        self.started = False
        self.queued: Queued | None = None  # where it waits, as far as this gateway knows
        self.started_unix_ms: float | None = None
        self.allowance: Ruling | None = None  # what its tenant has left, where this gateway admitted it
        self.end: Ended | None = None
        self.lost: HeadraceError | None = None
        self.first_text_unix_ms: float | None = None
        self.finished_unix_ms: float | None = None
        self._is_own = is_own
        self.received_unix_ms = job.received_unix_ms or float(job.created_unix_ms)
        self.resumed = 0  # how often a client has taken it up again here
        self._sent_unix_ms = self.received_unix_ms + job.edge_ms
        self._opened_unix_ms = 0.0  # by the store's clock: its first message
        self._stored_unix_ms = 0.0  # likewise: the latest of its log, or of the one that it follows
        self._clock = StageClock()
        self._log = LogReader()
        self._detokenizer = detokenizer
        self._released = Released(job, detokenizer)
        self._readers: list[Follower] = []
        self._owner = owner
        self._had_reader = False
        self._left = False  # its owner knows, or need not: this is what was kept of an ended one

    @property
    def response_id(self) -> ResponseId:
        return self.job.response

    @property
    def tenant(self) -> TenantId:
        return self.job.tenant

    @property
    def model_name(self) -> str:
        return self.job.model_name

    @property
    def created_unix_ms(self) -> int:
        return self.job.created_unix_ms

    @property
    def is_repeatable(self) -> bool:
        """Its client may ask for it again under an idempotency key."""
        return bool(self.job.request_digest)

    @property
    def text(self) -> str:
        """Of the message; reasoning and calls are no part of it."""
        return self._released.text

    @property
    def is_parsed(self) -> bool:
        """It has a shape: its readers are given ``Parsed``, not ``Text``."""
        return self._released.is_parsed

    @property
    def items(self) -> list[Item]:
        """Of a parsed one."""
        return self._released.items

    @property
    def log(self) -> LogReader:
        """Only its owner feeds it."""
        return self._log

    @property
    def total(self) -> int:
        """Tokens that count so far."""
        return self.end.total if self.end else min(self._released.count, len(self._log.ids))

    @property
    def ids(self) -> list[int]:
        return self._log.ids[: self.total]

    @property
    def wants_logprobs(self) -> bool:
        return self.job.sampling.logprobs is not None

    @property
    def attended(self) -> bool:
        return bool(self._readers)

    @property
    def has_client(self) -> bool:
        return any(isinstance(reader, LiveReader) for reader in self._readers)

    @property
    def is_joined(self) -> bool:
        """Its tokens are another response's, as far as its log says by now."""
        return self._log.leader is not None

    def lent_ids(self) -> tuple[int, ...] | None:
        """What the end of its log must repeat: the tokens of a response that has no writer of its own."""
        return tuple(self._log.ids) if self.is_joined else None

    def for_keeping(self) -> Live:
        """This ended response without what it took to make it: its prompt, and its readers."""
        kept = copy.copy(self)
        shown = msgspec.structs.replace(self.job.presentation, user_text="", input=(), said=())
        kept.job = msgspec.structs.replace(self.job, prompt_ids=(), presentation=shown)
        kept._log = copy.copy(self._log)
        kept._log.end = None  # its message repeats the whole completion; what it came to is in ``end``
        kept._readers = []
        kept._left = True
        return kept

    @property
    def kept_bytes(self) -> int:
        """Memory of the completion, about: an estimate from measured sizes of Python's objects."""
        entries = (1 + (self.job.sampling.logprobs or 0)) * len(self._log.logprobs)
        tokens = max(len(self._log.ids), self._released.count)
        shown = len(self.job.presentation.echo) + sum(map(len, self.job.presentation.stop))
        return (
            FIXED_BYTES
            + TOKEN_BYTES * tokens
            + LOGPROB_BYTES * entries
            + 4 * self._released.characters
            + shown
        )

    def token_bytes(self, token_id: int) -> bytes:
        return self._detokenizer.token_bytes(token_id)

    def decode(self, ids: Sequence[int]) -> str:
        """Their text. Some 0.35 us a token."""
        return self._detokenizer.decode(ids)

    def released(self, first_token: int, end_token: int) -> list[int]:
        """How many characters each of these tokens released."""
        return self._released.lengths(first_token, end_token)

    # -- what happens -------------------------------------------------------------------------------

    def feed(self, seq: int, message: ReplyMessage, stored_unix_ms: float) -> None:
        """A message of the log, in stream order, and when it was stored. After the end nothing changes."""
        if self.end is not None:
            return
        step = self._log.feed(seq, message)
        self._stored_unix_ms = stored_unix_ms
        self._opened_unix_ms = self._opened_unix_ms or stored_unix_ms
        news = False
        if step.started is not None:
            self._clock.started(stored_unix_ms, step.started.queued_unix_ms or self._sent_unix_ms)
            if not self.started:
                self.started = news = True
                self.started_unix_ms = self._when(stored_unix_ms)
                self._owner.live_started(self)
        if step.new_ids:
            self._clock.tokens(stored_unix_ms)
            news = self._decode(step.new_ids, stored_unix_ms) or news
            self._owner.live_tokens(self, len(step.new_ids))
        if step.end is not None:
            self._released.finish(step.end.total, len(self._log.ids))
        if self._released.stopped:
            self._stop(step.end, stored_unix_ms)
        elif step.end is not None:
            self._conclude(verdict(self.job, step.end), stored_unix_ms)
        elif news:
            self._wake()

    def lend(self, leader: Live) -> None:
        """News of the response that this one follows; they happened when the store says so, as in ``feed``:
        a gateway's clock may stand elsewhere."""
        if self.end is not None or not self.is_joined:
            return
        news = False
        stored_unix_ms = self._stored_unix_ms = max(self._stored_unix_ms, leader._stored_unix_ms)
        if leader.started and not self.started:
            self.started = news = True
            self._clock.started(stored_unix_ms, self._opened_unix_ms)
            self._owner.live_started(self)
        new_ids = leader.log.ids[len(self._log.ids) : leader.total]
        if new_ids:
            self._log.lend(new_ids)
            self._clock.tokens(stored_unix_ms)
            news = self._decode(new_ids, stored_unix_ms) or news
            self._owner.live_tokens(self, len(new_ids))
            leader.read_tokens = max(leader.read_tokens, leader.total)
        if self._released.stopped:
            self._stop(None, stored_unix_ms)
        elif news:
            self._wake()

    def _when(self, stored_unix_ms: float) -> float:
        """Its client is told of what was stored then."""
        return now_ms() if self._is_own else stored_unix_ms

    def _stop(self, end: LogEnd | None, stored_unix_ms: float) -> None:
        total = min(self._released.count, len(self._log.ids))
        if end is None:
            self._owner.live_stopped(self, total)
        self._conclude(stopped(self.job, total, end), stored_unix_ms)

    def _decode(self, new_ids: Sequence[int], stored_unix_ms: float) -> bool:
        """True if text was released."""
        if not self._released.push(new_ids):
            return False
        if self.first_text_unix_ms is None:
            self.first_text_unix_ms = self._when(stored_unix_ms)
        return True

    def _conclude(self, found: Verdict, stored_unix_ms: float) -> None:
        self.finished_unix_ms = self._when(stored_unix_ms)
        received, first = self.received_unix_ms, self.first_text_unix_ms
        total_ms = max(0.0, self.finished_unix_ms - received)
        told = None if found.timings is None else found.timings.engine_queue_ms
        stages = self._clock.ended(stored_unix_ms, told)
        if not self._is_own and stages is not None:  # two clocks met in the total
            total_ms = max(total_ms, self.job.edge_ms + stages.sum_ms)
        called = self._released.finish_parsing(found.total)
        self.end = Ended(
            outcome=found.outcome,
            total=found.total,
            reason="tool_calls" if called and found.reason == "stop" else found.reason,
            code=found.code,
            message=found.message,
            usage=found.usage,
            timings=found.timings,
            ttft_ms=max(0.0, first - received) if first is not None else None,
            total_ms=total_ms,
            parts=whole(total_ms, self.job.edge_ms, stages, held=self.job.held),
            reasoning_tokens=min(self._released.reasoning_tokens, found.total),
        )
        self._owner.live_ended(self)
        if self._had_reader or found.outcome == "cancelled":  # else its client comes yet: it was that quick
            self._check_left()
        self._wake()

    def waits(self, queued: Queued) -> None:
        """News of where it stands, until it is started."""
        self.queued = queued
        self._wake()

    def lose(self, error: HeadraceError) -> None:
        self.lost = error
        self._wake()

    def _wake(self) -> None:
        for reader in tuple(self._readers):  # one that joined may end by this, and detach
            reader.wake()

    # -- readers ------------------------------------------------------------------------------------

    def reader(self, from_token: int = 0) -> LiveReader:
        """A reader behind ``from_token`` tokens of the completion (``cursor.token_of`` of the last event
        its client has seen). Close it, or the response is never taken for deserted."""
        reader = LiveReader(self, from_token)
        self.attach(reader)
        return reader

    def attach(self, reader: Follower) -> None:
        """Detach it, or the response is never taken for deserted."""
        self._readers.append(reader)
        self._had_reader = True
        if len(self._readers) == 1:
            self._owner.live_attended(self)

    def detach(self, reader: Follower) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
            if self.end is not None:
                self._check_left()
            elif not self._readers:
                self._owner.live_deserted(self)

    def _check_left(self) -> None:
        if not self._readers and not self._left:
            self._left = True
            self._owner.live_left(self)

    def text_since(self, position: int) -> Text | Parsed | None:
        """Text, or pieces, released by the tokens behind ``position``, merged; ends with the last one
        that released any, so that its cursor does not depend on the merging."""
        end = self._released.solid
        if self.end is not None and self.wants_logprobs:
            end = max(end, self.end.total)  # tokens without text have log probabilities, too
        if end <= position:
            return None
        if not self.wants_logprobs:
            return self._released.between(position, end)
        ids, logprobs = tuple(self._log.ids[position:end]), tuple(self._log.logprobs[position:end])
        return self._released.between(position, end, ids, logprobs)
