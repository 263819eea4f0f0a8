"""One request and its answer: when things happened, and how it ended. Must not know connections, only the
clock's readings that they pass in (``time.monotonic()`` once a read)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import floor

from deploy.bench.streams import End, Outcome, Stream
from deploy.bench.tally import Totals, Window


class Recorder:
    """Counts for one load process. ``begins_s``: when the measured time begins; ``duration_s``: how long what
    becomes due counts (infinite where the number of conversations ends the measurement)."""

    def __init__(self, begins_s: float, duration_s: float) -> None:
        self.totals = Totals()
        self._begins_s = begins_s
        self._duration_s = duration_s
        self._fresh: dict[int, Window] = {}  # what was counted since the last ``taken``
        self._number = 0
        self._window: Window | None = None

    def number(self, now_s: float) -> int:
        """Of the second; negative in the warm-up."""
        return floor(now_s - self._begins_s)

    def window(self, number: int) -> Window:
        if number != self._number or self._window is None:
            self._number = number
            self._window = self._fresh.setdefault(number, Window())
        return self._window

    def taken(self) -> dict[int, Window]:
        """What was counted since the last call."""
        fresh, self._fresh, self._window = self._fresh, {}, None
        return fresh

    def counts(self, due_s: float) -> bool:
        return 0 <= due_s - self._begins_s < self._duration_s

    def sent(self, due_s: float, now_s: float) -> None:
        window = self.window(self.number(now_s))
        window.sent += 1
        window.late.record_s(now_s - due_s)

    def ended(self, exchange: Exchange, end: End, now_s: float) -> None:
        outcome, tokens = end.outcome, exchange.stream.tokens
        output = tokens.output if tokens is not None else exchange.deltas
        self._spread(exchange, output)
        window = self.window(self.number(now_s))
        window.ended[outcome] = window.ended.get(outcome, 0) + 1
        if outcome == "completed":
            window.e2e.record_s(now_s - exchange.due_s)
        if self.counts(exchange.due_s):
            self._total(exchange, end, output, now_s)

    def dropped(self, due_s: float) -> None:
        """Was due, and never sent: too many are in flight already."""
        window = self.window(self.number(due_s))
        window.ended["dropped"] = window.ended.get("dropped", 0) + 1
        if self.counts(due_s):
            self.totals.due += 1
            self.totals.ended["dropped"] = self.totals.ended.get("dropped", 0) + 1

    def _spread(self, exchange: Exchange, output: int) -> None:
        for number, deltas in exchange.deltas_in:
            self.window(number).tokens += output * deltas / exchange.deltas

    def _total(self, exchange: Exchange, end: End, output: int, now_s: float) -> None:
        totals, outcome = self.totals, end.outcome
        totals.due += 1
        totals.ended[outcome] = totals.ended.get(outcome, 0) + 1
        totals.last_end_s = max(totals.last_end_s, now_s - self._begins_s)
        if end.reason:
            totals.reasons[end.reason] = totals.reasons.get(end.reason, 0) + 1
        if exchange.arrivals:
            totals.ttft.record_s(exchange.first_s - exchange.due_s)
        if outcome != "completed":
            return
        totals.completed += 1
        totals.e2e.record_s(now_s - exchange.due_s)
        totals.completed_asked_tokens += exchange.asked_tokens
        totals.completed_tokens += output
        totals.completed_deltas += exchange.deltas
        totals.completed_arrivals += exchange.arrivals
        if (tokens := exchange.stream.tokens) is not None:
            totals.told_usage += 1
            totals.prompt_tokens += tokens.prompt
            totals.cached_tokens += tokens.cached
        if exchange.arrivals > 1:
            totals.stall.record_s(exchange.stall_s)
            if output > 1:
                totals.tpot.record_s((exchange.last_s - exchange.first_s) / (output - 1))


class Exchange:
    """``due_s``: when the schedule wanted it sent; every duration of it counts from there. ``settled``: it
    ended, and its connection is free or gone.

    An *arrival* is a read that brought text of this response, however many deltas were in it: servers that
    merge tokens, or whose small packets the network merges, are measured alike."""

    __slots__ = (
        "arrivals",
        "asked_tokens",
        "deltas",
        "deltas_in",
        "due_s",
        "end",
        "end_s",
        "first_s",
        "last_s",
        "recorder",
        "settled",
        "stall_s",
        "stream",
    )

    def __init__(self, recorder: Recorder, stream: Stream, due_s: float, asked_tokens: int) -> None:
        self.recorder = recorder
        self.stream = stream
        self.due_s = due_s
        self.asked_tokens = asked_tokens
        self.end: End | None = None
        self.first_s = self.last_s = self.end_s = self.stall_s = 0.0
        self.deltas = 0
        self.arrivals = 0
        self.deltas_in: list[tuple[int, int]] = []  # by window; one entry a second
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def feed(self, payloads: Sequence[bytes], now_s: float) -> None:
        """The events of one read."""
        feed = self.stream.feed
        deltas = 0
        for payload in payloads:
            if feed(payload):
                deltas += 1
        if deltas:
            self._arrive(deltas, now_s)
        if self.stream.end is not None:
            self.over(self.stream.end, now_s)

    def _arrive(self, deltas: int, now_s: float) -> None:
        number = self.recorder.number(now_s)
        window = self.recorder.window(number)
        window.deltas += deltas
        if self.deltas_in and self.deltas_in[-1][0] == number:
            self.deltas_in[-1] = (number, self.deltas_in[-1][1] + deltas)
        else:
            self.deltas_in.append((number, deltas))
        self.deltas += deltas
        self.arrivals += 1
        if self.arrivals == 1:
            self.first_s = now_s
            window.ttft.record_s(now_s - self.due_s)
        else:
            gap_s = now_s - self.last_s
            window.gap.record_s(gap_s)
            if gap_s > self.stall_s:
                self.stall_s = gap_s
        self.last_s = now_s

    def over(self, end: End, now_s: float) -> None:
        """The first end counts."""
        if self.end is None:
            self.end, self.end_s = end, now_s
            self.recorder.ended(self, end, now_s)

    def settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)

    @property
    def outcome(self) -> Outcome | None:
        return self.end.outcome if self.end is not None else None
