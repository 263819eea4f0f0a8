"""Which jobs wait or run, and whose they are. Pure: what JOBS holds, what its consumers say and which
logs have ended come in. Must not know how any of it was learned."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.top.snapshot import TenantRow

MAX_JOBS = 20_000  # followed; beyond, the oldest are forgotten, and the tenants' numbers are too small
MAX_OVER = 2_000  # whose end is still to be looked up; beyond, the oldest are not


@dataclass(frozen=True, slots=True)
class SeenJob:
    """``queue``: the name of its consumer. ``reply``: the prefix of its log's subjects."""

    seq: int
    queue: str
    response: str
    tenant: str
    model: str
    over: bool
    reply: str
    stored_unix_ms: float


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a consumer has come, in sequences of JOBS: all acked up to ``floor``, all pulled up to
    ``delivered``. ``held``: pulled and not acked."""

    floor: int = 0
    delivered: int = 0
    held: int = 0


_NOWHERE = Reach()


class JobBook:
    def __init__(self) -> None:
        self.complete = True  # every job that waits or runs is followed
        self._jobs: dict[int, SeenJob] = {}  # that wait or run, in the order of their sequences
        self._reach: dict[str, Reach] = {}
        self._over: deque[SeenJob] = deque(maxlen=MAX_OVER)  # acked, and nobody has looked how they ended
        self._turn = 0

    def reached(self, queues: dict[str, Reach]) -> None:
        """Where the consumers are; jobs of a queue that is not among them wait for a first worker."""
        self._reach = queues
        for job in [job for job in self._jobs.values() if job.seq <= self._of(job).floor]:
            del self._jobs[job.seq]
            self._over.append(job)
        if not self._jobs:
            self.complete = True

    def stored(self, jobs: Iterable[SeenJob]) -> None:
        for job in jobs:
            if job.seq <= self._of(job).floor:
                self._over.append(job)
            else:
                self._jobs[job.seq] = job
        while len(self._jobs) > MAX_JOBS:
            del self._jobs[next(iter(self._jobs))]
            self.complete = False

    def to_look_up(self, count: int) -> list[SeenJob]:
        """Jobs that are over, each once, the newest first; then, in turns, those that may be: pulled ones of
        queues where more were pulled than are held."""
        found = [self._over.pop() for _ in range(min(count, len(self._over)))]
        pulled = [job for job in self._jobs.values() if job.seq <= self._of(job).delivered]
        by_queue = Counter(job.queue for job in pulled)
        doubtful = [job for job in pulled if by_queue[job.queue] > self._reach[job.queue].held]
        if len(doubtful) > count - len(found):
            self._turn %= len(doubtful)
            doubtful = doubtful[self._turn :] + doubtful[: self._turn]
        doubtful = doubtful[: count - len(found)]
        self._turn += len(doubtful)
        return found + doubtful

    def ended(self, job: SeenJob) -> None:
        self._jobs.pop(job.seq, None)

    def by_response(self, response: str) -> SeenJob | None:
        return next((job for job in self._jobs.values() if job.response == response), None)

    def oldest_waiting(self, queue: str) -> SeenJob | None:
        delivered = self._reach.get(queue, _NOWHERE).delivered
        waiting = (job for job in self._jobs.values() if job.queue == queue and job.seq > delivered)
        return next(waiting, None)

    def tenants(self) -> tuple[TenantRow, ...]:
        """Those with most jobs first."""
        waiting: Counter[str] = Counter()
        over: Counter[str] = Counter()
        running: Counter[str] = Counter()
        for job in self._jobs.values():
            if job.seq <= self._of(job).delivered:
                running[job.tenant] += 1
            else:
                waiting[job.tenant] += 1
                over[job.tenant] += job.over
        rows = [
            TenantRow(tenant=name, waiting=waiting[name], over=over[name], running=running[name])
            for name in waiting.keys() | running.keys()
        ]
        return tuple(sorted(rows, key=lambda row: (-row.waiting - row.running, row.tenant)))

    def _of(self, job: SeenJob) -> Reach:
        return self._reach.get(job.queue, _NOWHERE)
