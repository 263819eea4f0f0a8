"""One accepted response as this gateway sees it: its log, its text, and whoever reads it.

A reader is only a position, so merging is free (a slow reader gets more at once) and a resume is another
position. Must not know how messages arrive, nor how they are shown.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal, Protocol

from broker.log_reader import LogEnd, LogReader
from gateway.generation import Ended, Generation, Outcome, Started, Text, Update
from gateway.text import Detokenizer, TextStream
from schemas.errors import ERRORS
from schemas.ids import ResponseId, TenantId
from schemas.job import Job
from schemas.reply import Closed, Failed, Finished, FinishReason, ReplyMessage, Timings, Usage

Memory = Literal["none", "on", "unavailable"]  # of the conversation: not asked for, kept, Redis is away


def now_ms() -> float:
    return time.time() * 1000


class LiveOwner(Protocol):
    """Who is told what a response needs. Called in the event loop; must not block nor raise."""

    def live_attended(self, live: Live) -> None: ...  # a first reader came

    def live_deserted(self, live: Live) -> None: ...  # the last reader went

    def live_stopped(self, live: Live) -> None: ...  # a stop string: the log must be closed

    def live_tokens(self, live: Live, count: int) -> None: ...  # counted for metrics

    def live_ended(self, live: Live) -> None: ...  # called once


class Live:
    """``text``: all that was released so far. ``ids``: the completion's tokens that count so far.
    ``started``: a worker has (or had) it. ``end``: set once, and last."""

    def __init__(
        self,
        job: Job,
        generation: Generation,
        detokenizer: Detokenizer,
        owner: LiveOwner,
        *,
        memory: Memory = "none",
    ) -> None:
        self.job = job
        self.generation = generation
        self.memory = memory
        self.started = False
        self.end: Ended | None = None
        self.accepted_unix_ms: float | None = None  # the job is stored
        self.first_text_unix_ms: float | None = None
        self.finished_unix_ms: float | None = None
        self._received_unix_ms = generation.received_unix_ms or float(job.created_unix_ms)
        self._log = LogReader()
        self._detokenizer = detokenizer
        self._stream = TextStream(detokenizer, job.presentation.stop)
        self._pieces: list[str] = []  # text released by token k+1; after the end, also the flush
        self._solid = 0  # pieces up to the last one that is not empty
        self._readers: list[LiveReader] = []
        self._owner = owner

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
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def log(self) -> LogReader:
        return self._log

    @property
    def total(self) -> int:
        """Tokens that count so far."""
        return self.end.total if self.end else min(len(self._pieces), len(self._log.ids))

    @property
    def ids(self) -> list[int]:
        return self._log.ids[: self.total]

    @property
    def usage(self) -> Usage:
        if self.end is not None:
            return self.end.usage
        return Usage(prompt_tokens=len(self.job.prompt_ids), completion_tokens=self.total)

    @property
    def wants_logprobs(self) -> bool:
        return self.job.sampling.logprobs is not None

    @property
    def attended(self) -> bool:
        return bool(self._readers)

    def token_text(self, token_id: int) -> str:
        """One token by itself, for log probabilities; half a character shows as U+FFFD."""
        return self._detokenizer.decode((token_id,))

    def token_bytes(self, token_id: int) -> bytes:
        return self._detokenizer.token_bytes(token_id)

    # -- what happens -------------------------------------------------------------------------------

    def feed(self, seq: int, message: ReplyMessage) -> None:
        """A message of the log, in stream order. After the end nothing changes any more."""
        if self.end is not None:
            return
        step = self._log.feed(seq, message)
        news = False
        if step.started is not None and not self.started:
            self.started = news = True
        if step.new_ids:
            news = self._decode(step.new_ids) or news
            self._owner.live_tokens(self, len(step.new_ids))
        if self._stream.stopped:
            self._stop(step.end)
        elif step.end is not None:
            self._finish(step.end)
        elif news:
            self._wake()

    def _decode(self, new_ids: object) -> bool:
        raise NotImplementedError

    def _stop(self, end: LogEnd | None) -> None:
        raise NotImplementedError

    def _finish(self, end: LogEnd) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        raise NotImplementedError

    def reader(self, from_token: int = 0) -> LiveReader:
        """A reader behind ``from_token`` tokens of the completion (``cursor.token_of`` of the last event
        its client has seen). Close it, or the response is never taken for deserted."""
        raise NotImplementedError


class LiveReader:
    """One client's place in a response. One task at a time may wait in ``next``."""

    async def next(self) -> list[Update]:
        """Wait for news: ``Started`` once, ``Text`` merged since the last call, ``Ended`` last.
        Empty after ``Ended`` was given."""
        raise NotImplementedError

    def close(self) -> None:
        """Detach; safe to call twice."""
        raise NotImplementedError
