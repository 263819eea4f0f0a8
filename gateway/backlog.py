"""How many jobs are before one in a model's queues, and for how long. Pure: looks at the queues and the time
come in. What happened here since the last look is counted on top, so that a burst is seen at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from broker.queues import QueueState
from broker.topology import QUEUES
from gateway.generation import Queued
from schemas.ids import ResponseId
from schemas.job import Lane, Priority

STALE_S = 5.0  # an older look says nothing
MEMORY_S = 20.0  # the rate of pulls is that of about so long
MEASURED_S = 1.0  # and counts once so much was measured

_EMPTY = tuple(QueueState() for _ in QUEUES)


@dataclass(slots=True)
class _Place:
    """``rank``: its place in its queue when that had seen ``pulled`` deliveries; 0: not looked at yet."""

    queue: int
    seq: int
    order: int  # of entering
    rank: int = 0
    pulled: int = 0


@dataclass(slots=True)
class _Counts:
    """Since the beginning, by queue: this gateway's jobs that were stored, and that started; and of all that
    ended."""

    entered: list[int]
    started: list[int]
    ended: int = 0

    def copy(self) -> _Counts:
        return _Counts(self.entered.copy(), self.started.copy(), self.ended)


class Backlog:
    """One model's. ``mark`` right before the queues are asked, ``looked`` with what they said."""

    def __init__(self) -> None:
        self._places: dict[ResponseId, _Place] = {}
        self._running: set[ResponseId] = set()
        self._counts = _Counts([0] * len(QUEUES), [0] * len(QUEUES))
        self._mark = self._counts.copy()
        self._states: Sequence[QueueState] = _EMPTY
        self._looked_s = -math.inf
        self._pulled, self._measured_s = 0.0, 0.0  # while something waited; the old counts ever less
        self._service_s: float | None = None

    @property
    def waiting_here(self) -> int:
        return len(self._places)

    @property
    def idle(self) -> bool:
        """Nothing of this gateway, and nothing seen to wait."""
        return not (self._places or self._running or any(state.waiting for state in self._states))

    # -- what happens here --------------------------------------------------------------------------

    def entered(self, response: ResponseId, priority: Priority, lane: Lane, seq: int) -> None:
        """Its job is stored at ``seq`` of the stream."""
        queue = QUEUES.index((priority, lane))
        self._counts.entered[queue] += 1
        self._places[response] = _Place(queue, seq, sum(self._counts.entered))

    def started(self, response: ResponseId) -> None:
        place = self._places.pop(response, None)
        if place is not None:
            self._counts.started[place.queue] += 1
            self._running.add(response)

    def ended(self, response: ResponseId, service_s: float | None) -> None:
        """``service_s``: how long it ran; None where it never did."""
        self.started(response)  # one that was closed while it waited is pulled and acked all the same
        if response in self._running:
            self._running.discard(response)
            self._counts.ended += 1
        if service_s is not None:
            known = self._service_s
            self._service_s = service_s if known is None else 0.9 * known + 0.1 * service_s

    # -- what is seen of all ------------------------------------------------------------------------

    def mark(self) -> _Counts:
        return self._counts.copy()

    def looked(self, states: Sequence[QueueState], mark: _Counts, now_s: float) -> None:
        passed_s = now_s - self._looked_s
        pulled = sum(state.pulled for state in states) - sum(state.pulled for state in self._states)
        waited = any(state.waiting for state in self._states) and any(state.waiting for state in states)
        if waited and 0 < passed_s < STALE_S and pulled >= 0:  # a consumer that was made anew counts from 0
            decay = math.exp(-passed_s / MEMORY_S)
            self._pulled = self._pulled * decay + pulled
            self._measured_s = self._measured_s * decay + passed_s
        self._states, self._mark, self._looked_s = states, mark, now_s
        self._rank(sum(mark.entered))

    def _rank(self, last_order: int) -> None:
        """Of those that were stored before the look and have no rank: the newest is the last of its queue."""
        unranked = [place for place in self._places.values() if not place.rank and place.order <= last_order]
        behind = [0] * len(QUEUES)
        for place in sorted(unranked, key=lambda place: -place.seq):
            state = self._states[place.queue]
            place.rank = max(1, state.waiting - behind[place.queue])
            place.pulled = state.pulled
            behind[place.queue] += 1

    # -- answers ------------------------------------------------------------------------------------

    def depth(self, priority: Priority, now_s: float) -> int:
        """Jobs of a class that wait, in both lanes."""
        waiting, _ = self._now(now_s)
        return sum(n for n, (of, _) in zip(waiting, QUEUES, strict=True) if of == priority)

    def depths(self) -> Sequence[int]:
        """At the last look."""
        return [state.waiting for state in self._states]

    def wait_of_next(self, priority: Priority, lane: Lane, slots: int, now_s: float) -> Queued:
        """For a job that came now."""
        waiting, held = self._now(now_s)
        queue = QUEUES.index((priority, lane))
        return self._wait(sum(waiting[: queue + 1]) + 1, held, slots)

    def waits_of(self, responses: Sequence[ResponseId], slots: int, now_s: float) -> Sequence[Queued | None]:
        """For each that waits; None: it does not. What is the same for all is counted once."""
        waiting, held = self._now(now_s)
        before = [sum(waiting[:queue]) for queue in range(len(QUEUES))]
        is_fresh = now_s - self._looked_s <= STALE_S
        found: list[Queued | None] = []
        for response in responses:
            place = self._places.get(response)
            if place is None:
                found.append(None)
                continue
            state = self._states[place.queue]
            if place.rank and is_fresh:
                own = place.rank - max(0, state.pulled - place.pulled)
                own = 0 if place.seq <= state.stream_seq else max(1, own)
            else:
                own = waiting[place.queue]
            found.append(self._wait(before[place.queue] + own, held, slots) if own else Queued())
        return found

    def _now(self, now_s: float) -> tuple[list[int], int]:
        """What waits in each queue, and how many jobs hold a slot."""
        if now_s - self._looked_s > STALE_S:
            waiting = [0] * len(QUEUES)
            for place in self._places.values():
                waiting[place.queue] += 1
            return waiting, len(self._running)
        since, mark = self._counts, self._mark
        started = [now - then for now, then in zip(since.started, mark.started, strict=True)]
        waiting = [
            max(0, state.waiting + entered - then - gone)
            for state, entered, then, gone in zip(
                self._states, since.entered, mark.entered, started, strict=True
            )
        ]
        held = sum(state.held for state in self._states) + sum(started) - (since.ended - mark.ended)
        return waiting, max(0, held)

    def _wait(self, place: int, held: int, slots: int) -> Queued:
        position = place - max(0, slots - held)
        if position <= 0:
            return Queued()
        rate = self._rate(slots)
        return Queued(position, None if rate is None else round(position / rate * 1000))

    def _rate(self, slots: int) -> float | None:
        """Jobs pulled per second while some wait: measured, else what the slots could do."""
        if self._measured_s >= MEASURED_S and self._pulled >= 1:
            return self._pulled / self._measured_s
        if self._service_s and slots:
            return slots / self._service_s
        return None
