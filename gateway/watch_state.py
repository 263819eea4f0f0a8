"""Which workers are pinged, and when their silence means death. Pure: events and the time come in (seconds
of a monotonic clock), pings and naks go out. Must not know how a ping is sent.

Silence is judged by worker, over all of its responses that are followed here. A worker that answers pings is
healthy however long it is silent (a long prefill). A verdict needs proof that our own side works:

    what happened                            what it does
    reconnected to the broker                streaks restart, no verdict for SETTLE_S
    a ping while our own side did not work   the same
    this process slept (SIGSTOP, a long GC)  streaks and silences restart: answers may lie in our socket
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from schemas.ids import ResponseId, WorkerId

STALL_S = 0.3  # a worker that nothing is heard of for so long is asked
PING_S = 1.0  # how long an answer may take
DEAD_PAUSE_S = 0.25  # a worker that nobody listens for may be reconnecting: it is asked again after this
SETTLE_S = 5.0  # a live worker has no subscription for up to 2 s after a broker restart (measured)
SWEEP_S = 0.05  # between two looks at all workers; it adds to each of the waits above
OVERSLEPT_S = 0.5  # a look that comes so much too late: this process did not run

Answer = Literal["alive", "dead", "silent"]
Verdict = Literal["dead", "hung"]

# What has to be answered so many times in a row: twice at least, for one answer may be out of date.
_VERDICTS: dict[Answer, tuple[int, Verdict]] = {"dead": (2, "dead"), "silent": (3, "hung")}


@dataclass(frozen=True, slots=True)
class Nak:
    """The deliveries to be given back, because the worker that holds them is dead or hangs."""

    worker: WorkerId
    verdict: Verdict
    ack_subjects: tuple[str, ...]


@dataclass(slots=True)
class _Watched:
    """``jobs``: ack subjects by response, never empty. A streak is of equal answers to pings, the first of
    which was sent at ``streak_since``; it counts for nothing once anything was heard since."""

    heard_at: float
    jobs: dict[ResponseId, str] = field(default_factory=dict)
    ask_at: float = float("-inf")
    streak_of: Answer = "alive"
    streak: int = 0
    streak_since: float = float("-inf")


class WatchState:
    """``now``: when it begins."""

    def __init__(self, now: float) -> None:
        self._workers: dict[WorkerId, _Watched] = {}
        self._worker_of: dict[ResponseId, WorkerId] = {}
        self._asked: dict[WorkerId, float] = {}  # pings in flight, and when they were sent
        self._nakked: dict[ResponseId, set[str]] = {}  # until over: as many as the response has had writers
        self._swept_at = now
        self._slept_at = float("-inf")
        self._streaks_from = float("-inf")
        self._verdicts_from = float("-inf")

    def begun(self, response: ResponseId, worker: WorkerId, ack_subject: str, now: float) -> None:
        """``worker`` writes the response from now on, whoever did before."""
        self._leave(response)
        if not ack_subject or ack_subject in self._nakked.get(response, ()):
            return
        watched = self._workers.setdefault(worker, _Watched(now))
        watched.heard_at = now
        watched.jobs[response] = ack_subject
        self._worker_of[response] = worker

    def heard(self, worker: WorkerId, now: float) -> None:
        """New tokens of it have come. 0.1 us: called once a message."""
        watched = self._workers.get(worker)
        if watched is not None:
            watched.heard_at = now

    def over(self, response: ResponseId) -> None:
        """It has ended, or is followed no more."""
        self._leave(response)
        self._nakked.pop(response, None)

    def _leave(self, response: ResponseId) -> None:
        worker = self._worker_of.pop(response, None)
        if worker is not None:
            watched = self._workers[worker]
            del watched.jobs[response]
            if not watched.jobs:
                del self._workers[worker]

    def reconnected(self, now: float) -> None:
        """Our connection to the broker is a new one."""
        self._streaks_from = now
        self._verdicts_from = now + SETTLE_S

    def swept(self, now: float) -> list[WorkerId]:
        """To be called every SWEEP_S. Returns whom to ping; each must be ``answered`` in the end."""
        self._note_sleep(now)
        self._swept_at = now
        due = [worker for worker, watched in self._workers.items() if self._is_due(worker, watched, now)]
        for worker in due:
            self._asked[worker] = now
        return due

    def _is_due(self, worker: WorkerId, watched: _Watched, now: float) -> bool:
        silent_s = now - max(watched.heard_at, self._slept_at)
        return worker not in self._asked and silent_s >= STALL_S and now >= watched.ask_at

    def _note_sleep(self, now: float) -> None:
        if now - self._swept_at > SWEEP_S + OVERSLEPT_S:
            self._slept_at = self._streaks_from = now

    def answered(self, worker: WorkerId, answer: Answer | None, now: float) -> Nak | None:
        """What the ping under way has brought. ``dead``: the broker says that nobody listens; ``silent``: no
        answer in PING_S, and the broker has answered a request of our own that was sent thereafter. None:
        our own side does not work, so nothing is known of the worker."""
        self._note_sleep(now)  # a ping that ran out while we slept may be told of before the next sweep
        asked_at = self._asked.pop(worker)
        if answer is None:
            self.reconnected(now)  # as good as: whatever cut us off may have cut the workers off, too
        watched = self._workers.get(worker)
        if watched is None:
            return None
        if answer is None:
            watched.ask_at = now + STALL_S
            return None
        if answer == "alive":
            watched.heard_at = now
            return None
        watched.ask_at = now + (DEAD_PAUSE_S if answer == "dead" else 0.0)
        needed, verdict = _VERDICTS[answer]
        if self._streak(watched, answer, asked_at) < needed or now < self._verdicts_from:
            return None
        return self._give_back(worker, verdict)

    def _streak(self, watched: _Watched, answer: Answer, asked_at: float) -> int:
        """Its length with this answer. One that began before its worker was heard, or before our side was
        unwell, is over; so is, with the next answer, one that a ping of back then begins now."""
        counts_from = max(watched.heard_at, self._streaks_from)
        if watched.streak_of != answer or watched.streak_since <= counts_from:
            watched.streak_of, watched.streak, watched.streak_since = answer, 0, asked_at
        watched.streak += 1
        return watched.streak

    def _give_back(self, worker: WorkerId, verdict: Verdict) -> Nak:
        jobs = self._workers.pop(worker).jobs
        for response, ack_subject in jobs.items():
            del self._worker_of[response]
            self._nakked.setdefault(response, set()).add(ack_subject)
        return Nak(worker, verdict, tuple(jobs.values()))
