"""The reply log's rules over all interleavings that hypothesis finds: writers claim, stall, lose their
connection, die and wake up again, anyone closes, readers join; and the proof that the search would notice:
with one rule broken, the same search must fail.

A schedule is bytes, three a step: what happens, to whom, how much. One draw for all of it is what lets
hypothesis try long stories (a state machine spent its time on choosing, and stored two messages a run)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from broker import log_writer
from broker.log_reader import LogReader, Step
from broker.log_writer import LogWriter
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    FinishReason,
    ReplyMessage,
    Started,
    Timings,
    Tokens,
    Usage,
)
from tests.unit.broker.log_world import LENGTH, Parts, Request, Stream, Violation, Worker, World, hold

WORKERS = 4  # that have not ended, at a time
FOLLOWERS = 3


class Interleaving:
    """What may happen. ``n`` chooses among those to whom it can; ``k`` says how much of it."""

    def __init__(self, parts: Parts, *, sampled: bool) -> None:
        self.world = World(parts, sampled=sampled)
        self.world.follow()

    def run(self, schedule: bytes) -> None:
        story: list[str] = []
        try:
            for what, n, k in zip(*[iter(schedule)] * 3, strict=False):
                step = STEPS[what % len(STEPS)]
                story.append(f"{step.__name__} {n} {k}")
                step(self, n, k)
            self.end_well()
        except Violation as violation:
            violation.add_note("\n".join(step for step in story if not step.startswith("nothing")))
            raise

    def nothing(self, _n: int, _k: int) -> None:
        """What a shrunk schedule is full of."""

    # -- workers --------------------------------------------------------------------------------------

    def claim(self, _n: int, k: int) -> None:
        """Left alone for some steps; a claim behind others' takes five."""
        if len(self._workers()) == WORKERS:
            return
        worker = self.world.new_worker()
        for _ in range(k % 12):
            if worker.wire and worker.task is not None:
                self.world.arrive(worker.wire)
            worker.resume()

    def resume(self, n: int, k: int) -> None:
        waiting = [worker for worker in self._workers() if worker.task is not None]
        if waiting:
            self.world.lag = max(0, k % 8 - 4)
            waiting[n % len(waiting)].resume()
            self.world.lag = 0

    def ask_again(self, n: int, _k: int) -> None:
        waiting = [worker for worker in self._workers() if worker.task is not None]
        if waiting:
            waiting[n % len(waiting)].ask_again()

    def generate(self, n: int, k: int) -> None:
        for worker, log in self._running(n):
            worker.generate(log, 1 + k % 3)
            if k >= 128:
                worker.publish(log, confirm=k >= 192)

    def publish(self, n: int, k: int) -> None:
        for worker, log in self._running(n):
            worker.publish(log, confirm=k % 2 == 1)

    def miss_an_ack(self, n: int, _k: int) -> None:
        for _, log in self._running(n):
            log.rewind()

    def look_at_the_lease(self, n: int, _k: int) -> None:
        for worker, log in self._running(n):
            worker.look(log)

    def finish(self, n: int, _k: int) -> None:
        for worker, log in self._running(n):
            worker.generate(log, LENGTH)
            worker.finish(log)

    def fail(self, n: int, _k: int) -> None:
        for worker, log in self._running(n):
            worker.fail(log)

    def hand_off(self, n: int, _k: int) -> None:
        for worker, log in self._running(n):
            worker.hand_off(log)

    def crash(self, n: int, _k: int) -> None:
        """What it has sent is still under way."""
        workers = self._workers()
        if workers:
            workers[n % len(workers)].over = True

    def _workers(self) -> list[Worker]:
        return [worker for worker in self.world.workers if not worker.over]

    def _writers(self) -> list[tuple[Worker, LogWriter]]:
        return [(worker, worker.running) for worker in self.world.workers if worker.running is not None]

    def _running(self, n: int) -> list[tuple[Worker, LogWriter]]:
        """One of those that may write, if there is one."""
        writers = self._writers()
        return [writers[n % len(writers)]] if writers else []

    # -- connections and the stream -------------------------------------------------------------------

    def arrive(self, n: int, k: int) -> None:
        for wire in self._busy_wire(n):
            for _ in range(min(1 + k % 4, len(wire))):
                self.world.arrive(wire, ack_lost=k >= 224)

    def reconnect(self, n: int, k: int) -> None:
        workers = self._workers()
        if workers:
            workers[n % len(workers)].reconnect(arriving=k % 3, unsent=k // 4 % 2)

    def lose_one(self, n: int, _k: int) -> None:
        """A stream that cannot keep up drops what it has not stored."""
        for wire in self._busy_wire(n):
            self.world.lose(wire)

    def close(self, _n: int, k: int) -> None:
        """Some time later, and perhaps it is tried twice."""
        stop = k % 2 == 1
        closed = Closed(reason="stop" if stop else "cancelled", total=k // 2 % (LENGTH + 1) if stop else None)
        request = Request(closed, message_id=self.world.new_name("closed"))
        self.world.new_wire(*[request] * (1 + k // 128))

    def duplicate_window_ends(self, _n: int, _k: int) -> None:
        self.world.stream.forget_ids()

    def _busy_wire(self, n: int) -> list[deque[Request]]:
        busy = [wire for wire in self.world.wires if wire]
        return [busy[n % len(busy)]] if busy else []

    # -- readers --------------------------------------------------------------------------------------

    def join(self, _n: int, k: int) -> None:
        if len(self.world.followers) < FOLLOWERS:
            self.world.follow().read(k)

    def follow(self, n: int, k: int) -> None:
        followers = self.world.followers
        followers[n % len(followers)].read(1 + k % 4, again=k // 4 % 4)

    # -- at last --------------------------------------------------------------------------------------

    def end_well(self) -> None:
        """Whatever has happened: one more worker, undisturbed, brings the response to its end; those that
        wake up later change nothing, and all readers have seen the same."""
        world = self.world
        asleep = [wire for wire in world.wires if wire]
        holders = [worker for worker, log in self._writers() if log.fence == world.stream.last_fence_seq]
        self._live_on(holders[0] if holders else world.new_worker())
        hold(world.reference.end is not None, "the response never ends")
        for wire in asleep:
            while wire:
                world.arrive(wire)
        for follower in [*world.followers, world.follow()]:
            follower.read(len(world.stream.messages), again=2)

    def _live_on(self, worker: Worker) -> None:
        for _ in range(10):
            log = worker.running
            if log is not None:
                self._bring_all(worker, log)
                worker.finish(log)
            worker.ask_again()
            self._deliver(worker)
            worker.resume()

    def _bring_all(self, worker: Worker, log: LogWriter) -> None:
        """Readers have all that was made before the end: ``Finished`` is not what they wait for."""
        worker.generate(log, LENGTH)
        while log.unsent:
            worker.publish(log, confirm=False)
        self._deliver(worker)
        ended = self.world.reference.end is not None
        lossy = log in self.world.lossy
        hold(ended or lossy or self.world.reference.ids == log.ids, "tokens stay missing")

    def _deliver(self, worker: Worker) -> None:
        while worker.wire:
            self.world.arrive(worker.wire)


WEIGHTS: dict[Callable[[Interleaving, int, int], None], int] = {
    Interleaving.nothing: 1,
    Interleaving.generate: 20,
    Interleaving.publish: 26,
    Interleaving.arrive: 36,
    Interleaving.resume: 28,
    Interleaving.follow: 12,
    Interleaving.claim: 10,
    Interleaving.reconnect: 10,
    Interleaving.ask_again: 9,
    Interleaving.finish: 3,
    Interleaving.hand_off: 5,
    Interleaving.crash: 4,
    Interleaving.look_at_the_lease: 2,
    Interleaving.miss_an_ack: 3,
    Interleaving.lose_one: 2,
    Interleaving.duplicate_window_ends: 2,
    Interleaving.join: 3,
    Interleaving.fail: 1,
    Interleaving.close: 1,
}
STEPS = [step for step, weight in WEIGHTS.items() for _ in range(weight)]


def search(parts: Parts, how: settings) -> None:
    @how
    @given(st.booleans(), st.binary(min_size=120, max_size=300))
    def interleavings(sampled: bool, schedule: bytes) -> None:
        Interleaving(parts, sampled=sampled).run(schedule)

    interleavings()


@pytest.fixture(autouse=True)
def _small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MESSAGE_TOKENS", 3)


def test_every_interleaving_keeps_the_rules() -> None:
    search(Parts(), settings(max_examples=800, deadline=None))


# -- the search can fail ------------------------------------------------------------------------------


class NoFenceCheck(LogReader):
    def _tokens(self, message: Tokens) -> Step:
        fence = self.fence if self.fence is not None else message.fence
        return super()._tokens(msgspec.structs.replace(message, fence=fence))


class NoOverlapCheck(LogReader):
    def _tokens(self, message: Tokens) -> Step:
        if message.offset > len(self.ids):
            return super()._tokens(message)
        return super()._tokens(msgspec.structs.replace(message, offset=len(self.ids)))


class NoGapCheck(LogReader):
    def _tokens(self, message: Tokens) -> Step:
        return super()._tokens(msgspec.structs.replace(message, offset=min(message.offset, len(self.ids))))


class TakesAMessageTwice(LogReader):
    def feed(self, seq: int, message: ReplyMessage) -> Step:
        self.last_seq = 0
        return super().feed(seq, message)


class LaterEndWins(LogReader):
    def feed(self, seq: int, message: ReplyMessage) -> Step:
        earlier, self.end = self.end, None
        step = super().feed(seq, message)
        if step.end is None:
            self.end = earlier
        return step


class HandOffsCount(LogReader):
    def _started(self, seq: int, message: Started) -> Step:
        self.handed_off = False
        return super()._started(seq, message)


class BarrenForEver(LogReader):
    def _tokens(self, message: Tokens) -> Step:
        barren = self.barren_fences
        step = super()._tokens(message)
        self.barren_fences = barren
        return step


class CountsWhatIsNotThere(LogReader):
    def _closed(self, seq: int, message: Closed) -> Step:
        step = super()._closed(seq, message)
        if self.end is not None and message.total is not None:
            self.end = replace(self.end, total=message.total)
        return step


class NoRewind(LogWriter):
    def rewind(self) -> None:
        pass


class NothingRepairs(NoRewind):
    def finished(
        self, reason: FinishReason, usage: Usage, timings: Timings, stop_token: int | None = None
    ) -> Finished:
        whole = super().finished(reason, usage, timings, stop_token)
        return msgspec.structs.replace(whole, ids=(), logprobs=None)


class UnconditionalTerminals(Stream):
    def accepts(self, request: Request) -> bool:
        return isinstance(request.message, Finished | Failed) or super().accepts(request)


BROKEN = {
    "reader: no fence check": Parts(reader=NoFenceCheck),
    "reader: no overlap check": Parts(reader=NoOverlapCheck),
    "reader: no gap check": Parts(reader=NoGapCheck),
    "reader: takes a message twice": Parts(reader=TakesAMessageTwice),
    "reader: a later end wins": Parts(reader=LaterEndWins),
    "reader: hand-offs count": Parts(reader=HandOffsCount),
    "reader: barren for ever": Parts(reader=BarrenForEver),
    "reader: counts what is not there": Parts(reader=CountsWhatIsNotThere),
    "writer: no rewind": Parts(writer=NoRewind),
    "writer: nothing repairs": Parts(writer=NothingRepairs),
    "stream: unconditional terminals": Parts(stream=UnconditionalTerminals),
    "claim: not read to its own Started": Parts(reads_to_own_started=False),
}


@pytest.mark.parametrize("parts", BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_found(parts: Parts) -> None:
    how = settings(
        max_examples=3000,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(Violation):
        search(parts, how)
