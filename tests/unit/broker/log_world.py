"""A small world around one reply log: a stream, the connections into it, workers and readers.

It does what JetStream and TCP permit and no more: what is stored has one order and never changes; a
connection keeps its order, but may stall for as long as it likes, and may lose its end. Whatever
happens is held against the rules: see ``Violation``. Must not know who chooses what happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from broker.log_reader import LogEnd, LogReader
from broker.log_writer import LogWriter
from schemas.ids import Fence, WorkerId
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    Handoff,
    ReplyMessage,
    Started,
    Timings,
    TokenLogprobs,
    Tokens,
    Usage,
)
from schemas.sampling import Sampling
from workers.engine.sim_sequence import choose, expected_completion, next_state, start_state

PROMPT = (3, 1, 4)
LENGTH = 8
SAMPLING = Sampling(max_tokens=LENGTH, ignore_eos=True)
ORACLE, _ = expected_completion(PROMPT, SAMPLING, mean_output_tokens=0, max_model_len=1000)
FIRST_SEQ, STRIDE = 5, 3  # the stream holds other responses, too


class Violation(AssertionError):
    """The log broke its promise."""


def hold(true: bool, otherwise: str) -> None:
    """Like ``assert``, but no mistake of the world itself passes for a finding."""
    if not true:
        raise Violation(otherwise)


@dataclass(eq=False)
class Request:
    """A message on its way. ``answered`` with ``seq`` None: the server refused it."""

    message: ReplyMessage
    expected: int | None = None  # last sequence on R.f
    message_id: str | None = None
    writer: LogWriter | None = None  # whose tokens these are
    confirms: bool = False  # the writer waits for the ack
    answered: bool = False
    seq: int | None = None


class Stream:
    def __init__(self) -> None:
        self.messages: list[tuple[int, ReplyMessage]] = []
        self.last_fence_seq = 0
        self._stored_ids: dict[str, int] = {}

    def store(self, request: Request) -> int | None:
        """The server looks for a duplicate before it looks at the expected sequence."""
        if request.message_id in self._stored_ids:
            return self._stored_ids[request.message_id]
        if not self.accepts(request):
            return None
        seq = FIRST_SEQ + STRIDE * len(self.messages)
        self.messages.append((seq, request.message))
        if not isinstance(request.message, Finished | Failed | Tokens):
            self.last_fence_seq = seq
        if request.message_id is not None:
            self._stored_ids[request.message_id] = seq
        return seq

    def accepts(self, request: Request) -> bool:
        return request.expected is None or request.expected == self.last_fence_seq

    def forget_ids(self) -> None:
        """The duplicate window is over."""
        self._stored_ids.clear()


@dataclass(frozen=True)
class Parts:
    """What the world is built from: the real parts, unless somebody wants to see one fail."""

    reader: type[LogReader] = LogReader
    writer: type[LogWriter] = LogWriter
    stream: type[Stream] = Stream
    reads_to_own_started: bool = True


@dataclass(frozen=True)
class View:
    """All that a reader can tell, but for the tokens themselves."""

    total: int
    fence: Fence | None
    end: LogEnd | None
    attempts: int
    fences: int
    barren_fences: int
    handed_off: bool

    @classmethod
    def of(cls, reader: LogReader) -> View:
        counts = (reader.attempts, reader.fences, reader.barren_fences)
        return cls(len(reader.ids), reader.fence, reader.end, *counts, reader.handed_off)


class World:
    """``sampled``: every worker draws its own tokens, so that two workers' completions differ from the first
    token on that both make; else all are greedy and there is one right completion."""

    def __init__(self, parts: Parts, *, sampled: bool) -> None:
        self.parts = parts
        self.sampled = sampled
        self.stream = parts.stream()
        self.reference = parts.reader()  # reads everything at once, once
        self.views = [View.of(self.reference)]  # after so many messages
        self.completions: set[tuple[int, ...]] = {()}  # all that a worker ever had, and their beginnings
        self.workers: list[Worker] = []
        self.followers: list[Follower] = []
        self.wires: list[deque[Request]] = []
        self.lag = 0  # so many messages a replica may be behind when it is read
        self.lossy: list[LogWriter] = []  # only their Finished can bring what is missing
        self._names = 0

    def new_name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}-{self._names}"

    def new_wire(self, *requests: Request) -> deque[Request]:
        wire = deque(requests)
        self.wires.append(wire)
        return wire

    def new_worker(self) -> Worker:
        worker = Worker(self, self.new_name("w"), seed=len(self.workers) if self.sampled else None)
        self.workers.append(worker)
        return worker

    def follow(self) -> Follower:
        follower = Follower(self, self.parts.reader())
        self.followers.append(follower)
        return follower

    def arrive(self, wire: deque[Request], *, ack_lost: bool = False) -> None:
        request = wire.popleft()
        stored = len(self.stream.messages)
        seq = self.stream.store(request)
        if len(self.stream.messages) > stored:
            self.observe(*self.stream.messages[-1])
        if ack_lost or request.answered:
            return
        request.answered, request.seq = True, seq
        if request.confirms and request.writer is not None and isinstance(request.message, Tokens):
            request.writer.confirmed(request.message.offset + len(request.message.ids))

    def lose(self, wire: deque[Request]) -> None:
        """The server drops a message for which nobody may wait: its writer cannot know."""
        writer = wire.popleft().writer
        if writer is not None:
            self.lossy.append(writer)

    def read(self, reader: LogReader, upto: int) -> int:
        """Feed the first ``upto`` messages; the sequence of the last one of them on ``R.f``."""
        last_fence_seq = 0
        for seq, message in self.stream.messages[:upto]:
            if not isinstance(message, Finished | Failed | Tokens):
                last_fence_seq = seq
            reader.feed(seq, message)
        return last_fence_seq

    def read_stored(self, reader: LogReader) -> int:
        return self.read(reader, max(0, len(self.stream.messages) - self.lag))

    # -- what must hold -------------------------------------------------------------------------------

    def observe(self, seq: int, message: ReplyMessage) -> None:
        """A message was stored: what does it do to whoever reads it?"""
        reader, before = self.reference, self.views[-1]
        reader.feed(seq, message)
        after = View.of(reader)
        self.views.append(after)
        if isinstance(message, Tokens | Finished | Failed | Handoff) and message.fence != self._last_started:
            hold(after == before, "a writer that was replaced changed the response")
        if before.end is not None:
            hold(after == before, "something changed after the end")
        elif after.end is not None:
            hold(after.end.seq == seq, "an end where none was stored")
            self._check_end(after.end, before.total)
        self._check_tokens()
        self._check_attempts(after)

    @property
    def _last_started(self) -> int | None:
        return next((seq for seq, m in reversed(self.stream.messages) if isinstance(m, Started)), None)

    def _check_tokens(self) -> None:
        ids = tuple(self.reference.ids)
        hold(ids in self.completions, "a completion that no worker made")
        hold(self.sampled or list(ids) == ORACLE[: len(ids)], "not what the engine says")
        logprobs = [known.chosen for known in self.reference.logprobs]
        hold(logprobs == list(ids), "log probabilities of other tokens")

    def _check_end(self, end: LogEnd, total_before: int) -> None:
        if isinstance(end.message, Closed):
            cut = LENGTH if end.message.total is None else end.message.total
            hold(end.total == min(cut, total_before), "Closed counts tokens that are not there")
        else:
            hold(end.total == len(self.reference.ids), "the end leaves tokens out")
        if isinstance(end.message, Finished):
            hold(end.total == end.message.total == LENGTH, "finished, but not complete")

    def _check_attempts(self, view: View) -> None:
        """As rule 8 says it: all Starteds that no hand-off led to; of those, the ones that the completion
        has not grown behind."""
        counted: list[int] = []
        attempts, latest, led = 0, None, False
        for place, (seq, message) in enumerate(self.stream.messages):
            if self.views[place].end is not None:
                break
            if isinstance(message, Handoff) and message.fence == latest:
                led = True
            if isinstance(message, Started):
                attempts += 1
                if not led:
                    counted.append(place)
                latest, led = seq, False
        barren = [place for place in counted if self.views[place].total == view.total]
        hold((view.attempts, view.fences) == (attempts, len(counted)), "attempts are miscounted")
        hold(view.barren_fences == len(barren), "barren attempts are miscounted")


class Worker:
    """One delivery of the job. ``task``: what it waits for answers in, claiming or ending."""

    def __init__(self, world: World, name: str, seed: int | None) -> None:
        self.over = False
        self.log: LogWriter | None = None
        self.wire = world.new_wire()
        self.asked: Request | None = None
        self._world = world
        self._name = name
        self._seed = seed
        self.task: Iterator[None] | None = self._claim()
        self.resume()

    @property
    def running(self) -> LogWriter | None:
        return None if self.over or self.task is not None else self.log

    def resume(self) -> None:
        """Go on until the next moment at which the rest of the world may move."""
        if self.task is None or self.over:
            return
        try:
            next(self.task)
        except StopIteration:
            self.task = None

    def ask_again(self) -> None:
        if self.asked is not None and not self.asked.answered and not self.over:
            self.wire.append(self.asked)

    def generate(self, log: LogWriter, count: int) -> None:
        state = start_state(PROMPT, self._seed)
        for token in log.ids:
            state = next_state(state, token)
        for _ in range(min(count, LENGTH - log.total)):
            token = choose(state, log.total, SAMPLING, 0)
            state = next_state(state, token)
            log.append([token], [TokenLogprobs(token)])
            self._world.completions.add(tuple(log.ids))

    def publish(self, log: LogWriter, *, confirm: bool) -> None:
        tokens = log.take()
        if tokens is not None:
            self.wire.append(Request(tokens, writer=log, confirms=confirm))

    def reconnect(self, arriving: int, unsent: int) -> None:
        """Of what is under way, the first messages may still arrive, the last ones had not left the client
        and go over the new connection, and those between are lost."""
        under_way = list(self.wire)
        self.wire.clear()
        for request in under_way:
            request.confirms = False  # who waited was told that there is no answer
        self._world.new_wire(*under_way[:arriving])
        self.wire = self._world.new_wire(*under_way[max(arriving, len(under_way) - unsent) :])
        if self.running is not None:
            self.running.rewind()

    def look(self, log: LogWriter) -> None:
        self.over = log.fence != self._world.stream.last_fence_seq

    def finish(self, log: LogWriter) -> None:
        if log.total == LENGTH:
            self.task = self._end(log.finished("length", Usage(), Timings()))
            self.resume()

    def fail(self, log: LogWriter) -> None:
        self.task = self._end(log.failed("engine_rejected", ""))
        self.resume()

    def hand_off(self, log: LogWriter) -> None:
        while log.unsent:
            self.publish(log, confirm=False)
        self.task = self._leave(log.fence)
        self.resume()

    def _ask(self, what: ReplyMessage, expected: int | None, name: str) -> Generator[None, None, int | None]:
        self.asked = request = Request(what, expected, message_id=name)
        self.wire.append(request)
        while not request.answered:
            yield
        return request.seq

    def _claim(self) -> Iterator[None]:
        """As ``ReplyLog.claim``."""
        world = self._world
        history, last_fence_seq = world.parts.reader(), 0
        while True:
            started = Started(attempt=history.attempts + 1, worker=WorkerId(self._name))
            seq = yield from self._ask(started, last_fence_seq, world.new_name("fence"))
            if seq is not None:
                break
            history = world.parts.reader()
            last_fence_seq = world.read_stored(history)
            if history.end is not None or history.is_poison():
                yield from self._leave_alone(history)
                return
            yield
        place = (seq - FIRST_SEQ) // STRIDE
        if last_fence_seq and world.parts.reads_to_own_started:
            world.read(history, place)
        if history.end is not None:
            yield from self._leave_alone(history)
            return
        hold(View.of(history) == world.views[place], "a claim without the log's whole history")
        self.log = world.parts.writer(Fence(seq), history.ids, history.logprobs)

    def _leave_alone(self, history: LogReader) -> Iterator[None]:
        if history.end is None:
            closed = Closed(reason="refused", code="poison")
            yield from self._ask(closed, None, self._world.new_name("closed"))
        self._ack()

    def _end(self, message: Finished | Failed) -> Iterator[None]:
        stored = yield from self._ask(message, message.fence, f"end-{message.fence}")
        if stored is not None:
            self._ack()
            return
        yield
        history = self._world.parts.reader()
        self._world.read_stored(history)
        if history.end is not None:
            self._ack()
        self.over = True

    def _leave(self, fence: Fence) -> Iterator[None]:
        yield from self._ask(Handoff(fence=fence), fence, self._world.new_name("fence"))
        self.over = True

    def _ack(self) -> None:
        """Nobody will be given this job again."""
        hold(self._world.reference.end is not None, "the job was acked before the log had its end")
        self.over = True


@dataclass
class Follower:
    """A reader that joined some time: what it caught up with and what it then gets live may overlap."""

    world: World
    reader: LogReader
    place: int = 0
    ids: list[int] = field(default_factory=list)
    ends: list[LogEnd] = field(default_factory=list)

    def read(self, count: int, again: int = 0) -> None:
        messages = self.world.stream.messages
        start, self.place = max(0, self.place - again), min(len(messages), self.place + count)
        for seq, message in messages[start : self.place]:
            step = self.reader.feed(seq, message)
            self.ids.extend(step.new_ids)
            if step.end is not None:
                self.ends.append(step.end)
        view = self.world.views[self.place]
        hold(View.of(self.reader) == view, "two readers differ")
        known = self.world.reference.ids[: view.total]
        hold(self.ids == self.reader.ids == known, "two readers have other tokens")
        hold(self.ends == ([] if view.end is None else [view.end]), "not one end")
