"""Where a response's time went, as far as its reply log tells. Pure: the log's messages and when each was
stored in, durations out; so every gateway, and whoever looks years later, gets the same figures.

All times are the store's own (unix milliseconds), so that no two clocks meet in a difference. What each part
means to a client stands in gateway/PROTOCOL.md. ``tokens`` runs once for each message of a log and costs
0.1 us.
"""

from __future__ import annotations

from enum import Enum, auto

import msgspec

PARTS = ("edge", "queue", "prefill", "decode", "reconnect", "transport")  # in the order in which they begin


class LogStages(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from the job's storing to the log's end; the four parts add up to that time.
    ``engine_queue_ms``: of ``queue_ms``, what the engine's own queue took; None where no worker told it."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    reconnect_ms: float
    engine_queue_ms: float | None = None

    @property
    def sum_ms(self) -> float:
        return self.queue_ms + self.prefill_ms + self.decode_ms + self.reconnect_ms


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of a response from its request to its end; they add up to the whole of it."""

    edge_ms: float = 0.0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    reconnect_ms: float = 0.0
    transport_ms: float = 0.0
    engine_queue_ms: float | None = None  # part of queue_ms

    def of(self, part: str) -> float:
        """``part``: one of ``PARTS``."""
        value: float = getattr(self, f"{part}_ms")
        return value


class _Phase(Enum):
    QUEUE = auto()
    PREFILL = auto()
    DECODE = auto()
    RECONNECT = auto()  # a writer is gone that had brought tokens, and the next has brought none yet


class StageClock:
    __slots__ = (
        "_attempts",
        "_decode_ms",
        "_last",
        "_phase",
        "_prefill_ms",
        "_prefilled_by",
        "_queue_ms",
        "_queued",
        "_reconnect_ms",
        "_since",
    )

    def __init__(self) -> None:
        self._phase = _Phase.QUEUE
        self._queued = 0.0
        self._since = 0.0  # when the present phase began
        self._last = 0.0  # of the new tokens
        self._attempts = 0
        self._prefilled_by = 0  # the attempt that brought the first tokens
        self._decode_ms = 0.0
        self._reconnect_ms = 0.0
        self._queue_ms = 0.0
        self._prefill_ms = 0.0

    def started(self, at: float, queued: float) -> None:
        """A writer has claimed the log. ``queued``: when the job was stored."""
        self._attempts += 1
        match self._phase:
            case _Phase.QUEUE:
                self._queued = min(queued, at)
                self._queue_ms = at - self._queued
                self._enter(_Phase.PREFILL, at)
            case _Phase.PREFILL:  # what the writer before it did is lost
                self._reconnect_ms += max(0.0, at - self._since)
                self._since = at
            case _Phase.DECODE:
                self._decode_ms += max(0.0, self._last - self._since)
                self._enter(_Phase.RECONNECT, self._last)
            case _Phase.RECONNECT:
                pass

    def tokens(self, at: float) -> None:
        """New ones, in a message that was stored then."""
        if self._phase is _Phase.DECODE:
            self._last = at
        elif self._phase is _Phase.PREFILL:
            self._prefill_ms = max(0.0, at - self._since)
            self._prefilled_by = self._attempts
            self._enter(_Phase.DECODE, at)
        elif self._phase is _Phase.RECONNECT:
            self._reconnect_ms += max(0.0, at - self._since)
            self._enter(_Phase.DECODE, at)

    def ended(self, at: float, engine_queue_ms: float | None = None) -> LogStages | None:
        """``engine_queue_ms``: as the last writer told it. None where no writer ever began."""
        if self._phase is _Phase.QUEUE:
            return None
        rest = max(0.0, at - self._since)
        queue_ms, prefill_ms = self._queue_ms, self._prefill_ms
        decode_ms, reconnect_ms = self._decode_ms, self._reconnect_ms
        if self._phase is _Phase.PREFILL:
            prefill_ms = rest
        elif self._phase is _Phase.DECODE:
            decode_ms += rest
        else:
            reconnect_ms += rest
        told = None
        if engine_queue_ms is not None and self._prefilled_by == self._attempts:
            told = min(engine_queue_ms, prefill_ms)
            queue_ms, prefill_ms = queue_ms + told, prefill_ms - told
        return LogStages(
            queue_ms=queue_ms,
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
            reconnect_ms=reconnect_ms,
            engine_queue_ms=told,
        )

    def _enter(self, phase: _Phase, at: float) -> None:
        self._phase = phase
        self._since = self._last = at


def whole(total_ms: float, edge_ms: float, stages: LogStages | None, *, held: bool) -> Parts:
    """The parts of ``total_ms``: what is neither the edge's nor the log's is transport. ``stages`` None: no
    worker had it; it waited for one, or its tokens came from elsewhere (``held``) and needed none."""
    edge_ms = min(edge_ms, total_ms)
    rest_ms = total_ms - edge_ms
    if stages is None:
        return Parts(
            edge_ms=edge_ms, queue_ms=0.0 if held else rest_ms, transport_ms=rest_ms if held else 0.0
        )
    return Parts(
        edge_ms=edge_ms,
        queue_ms=stages.queue_ms,
        prefill_ms=stages.prefill_ms,
        decode_ms=stages.decode_ms,
        reconnect_ms=stages.reconnect_ms,
        transport_ms=max(0.0, rest_ms - stages.sum_ms),
        engine_queue_ms=stages.engine_queue_ms,
    )
