"""When a silent worker is asked, and when its silence is death."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.watch_state import (
    DEAD_PAUSE_S,
    OVERSLEPT_S,
    PING_S,
    SETTLE_S,
    STALL_S,
    SWEEP_S,
    Answer,
    Nak,
    WatchState,
)
from schemas.ids import ResponseId, WorkerId

W, W2 = WorkerId("w-1"), WorkerId("w-2")
R, R2, R3 = ResponseId("resp_1"), ResponseId("resp_2"), ResponseId("resp_3")


class Desk:
    """The machine and its clock. ``pinged``: who was pinged, in order; ``waiting``: and has not answered."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.state = WatchState(self.now)
        self.pinged: list[WorkerId] = []
        self.waiting: list[WorkerId] = []

    def sweep(self) -> list[WorkerId]:
        due = self.state.swept(self.now)
        self.pinged += due
        self.waiting += due
        return due

    def run(self, seconds: float) -> None:
        """Awake all the while."""
        for _ in range(round(seconds / SWEEP_S)):
            self.now += SWEEP_S
            self.sweep()

    def until_pinged(self, worker: WorkerId = W) -> float:
        """Returns how long it took."""
        began = self.now
        while worker not in self.waiting:
            assert self.now < began + 60, "never pinged"
            self.run(SWEEP_S)
        return self.now - began

    def begin(self, response: ResponseId = R, worker: WorkerId = W, ack_subject: str = "ack-1") -> None:
        self.state.begun(response, worker, ack_subject, self.now)

    def answer(self, answer: Answer | None, worker: WorkerId = W) -> Nak | None:
        self.waiting.remove(worker)
        return self.state.answered(worker, answer, self.now)

    def ping(self, answer: Answer | None, worker: WorkerId = W) -> Nak | None:
        """The next ping of this worker, and its answer, after as long as that takes."""
        self.until_pinged(worker)
        if answer == "silent":
            self.run(PING_S)
        return self.answer(answer, worker)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_who_is_heard_is_not_asked(desk: Desk) -> None:
    desk.begin()
    for _ in range(20):
        desk.run(STALL_S - SWEEP_S)
        desk.state.heard(W, desk.now)
    assert desk.pinged == []
    assert STALL_S <= desk.until_pinged() <= STALL_S + 2 * SWEEP_S


def test_to_begin_is_to_be_heard(desk: Desk) -> None:
    desk.begin()
    desk.run(STALL_S - SWEEP_S)
    desk.begin(R2, ack_subject="ack-2")
    desk.run(STALL_S - SWEEP_S)
    assert desk.pinged == []


def test_who_has_no_response_is_not_asked(desk: Desk) -> None:
    desk.state.heard(W, desk.now)
    desk.begin()
    desk.begin(R2, ack_subject="ack-2")
    desk.state.over(R)
    desk.state.over(R2)
    desk.state.over(R3)
    desk.run(3)
    assert desk.pinged == []


def test_many_streams_one_ping(desk: Desk) -> None:
    for n in range(100):
        desk.begin(ResponseId(f"resp_{n}"), ack_subject=f"ack-{n}")
    desk.run(10)
    assert desk.pinged == [W]  # it has not answered yet
    desk.answer("alive")
    desk.run(STALL_S - SWEEP_S)
    assert desk.pinged == [W]
    desk.until_pinged()
    assert desk.pinged == [W, W]


def test_one_ping_though_the_worker_was_dropped_in_between(desk: Desk) -> None:
    desk.begin()
    desk.until_pinged()
    desk.state.over(R)
    desk.begin(R2, ack_subject="ack-2")
    desk.run(2)
    assert desk.pinged == [W]
    assert desk.answer("dead") is None  # and it tells nothing: the worker was heard since
    assert desk.ping("dead") is None
    assert desk.ping("dead") is not None


def test_alive_and_silent_for_ever_is_healthy(desk: Desk) -> None:
    desk.begin()
    assert [desk.ping("alive") for _ in range(100)] == [None] * 100


def test_dead_is_what_nobody_listens_for_twice(desk: Desk) -> None:
    desk.begin()
    desk.begin(R2, ack_subject="ack-2")
    desk.begin(R3, W2, "ack-3")
    assert desk.ping("dead") is None
    assert DEAD_PAUSE_S <= desk.until_pinged() <= DEAD_PAUSE_S + 2 * SWEEP_S
    assert desk.answer("dead") == Nak(W, "dead", ("ack-1", "ack-2"))
    desk.answer("alive", W2)
    desk.run(2)
    assert desk.pinged.count(W) == 2  # forgotten; the other one is still looked after
    assert desk.pinged.count(W2) == 2


def test_hung_is_no_answer_in_three_seconds(desk: Desk) -> None:
    desk.begin()
    desk.until_pinged()
    asked_at = desk.now
    naks = []
    while not any(naks):
        desk.run(PING_S)
        naks.append(desk.answer("silent"))
        if naks[-1] is None:
            assert desk.until_pinged() <= SWEEP_S
    assert naks == [None, None, Nak(W, "hung", ("ack-1",))]
    assert 3.0 <= round(desk.now - asked_at, 6) <= 3.0 + 2 * SWEEP_S


@pytest.mark.parametrize("broken_by", ["alive", "heard", "begun", "silent", None])
def test_a_streak_is_unbroken(desk: Desk, broken_by: str | None) -> None:
    desk.begin()
    assert desk.ping("dead") is None
    match broken_by:
        case "heard":
            desk.state.heard(W, desk.now)
        case "begun":
            desk.begin(R2, ack_subject="ack-2")
        case "alive" | "silent" | None:
            assert desk.ping(broken_by) is None
    desk.run(SETTLE_S if broken_by is None else 0)
    assert desk.ping("dead") is None
    assert desk.ping("dead") is not None


def test_what_is_heard_during_a_ping_outweighs_it(desk: Desk) -> None:
    desk.begin()
    assert desk.ping("silent") is None
    assert desk.ping("silent") is None
    desk.until_pinged()
    desk.run(0.5)
    desk.state.heard(W, desk.now)
    desk.run(0.5)
    assert desk.answer("silent") is None
    assert [desk.ping("silent") is None for _ in range(3)] == [True, True, False]


def test_no_verdict_soon_after_a_reconnect(desk: Desk) -> None:
    desk.begin()
    assert desk.ping("dead") is None
    desk.until_pinged()
    desk.state.reconnected(desk.now)
    began = desk.now
    assert desk.answer("dead") is None  # it was asked on the old connection
    naks = []
    while not any(naks):
        naks.append(desk.ping("dead"))
    assert len(naks) > 10  # it goes on asking
    assert began + SETTLE_S <= desk.now <= began + SETTLE_S + STALL_S + SWEEP_S


def test_a_streak_does_not_outlive_the_connection(desk: Desk) -> None:
    desk.begin()
    assert desk.ping("dead") is None
    desk.state.reconnected(desk.now)
    desk.until_pinged()
    desk.run(SETTLE_S)
    assert desk.answer("dead") is None
    assert desk.ping("dead") is not None


def test_a_worker_that_returns_after_a_restart_of_the_broker_keeps_its_jobs(desk: Desk) -> None:
    desk.begin()
    desk.state.reconnected(desk.now)
    assert [desk.ping("dead") for _ in range(6)] == [None] * 6  # longer than measured
    assert [desk.ping("alive") for _ in range(30)] == [None] * 30


def test_no_verdict_while_our_own_side_fails(desk: Desk) -> None:
    """Nor soon after: what cut us off may have cut off the worker, which then connects anew."""
    desk.begin()
    assert [desk.ping("silent") for _ in range(2)] == [None] * 2
    assert [desk.ping(None) for _ in range(20)] == [None] * 20
    failed_at = desk.now
    naks = []
    while not any(naks):
        naks.append(desk.ping("dead"))
    assert desk.now >= failed_at + SETTLE_S


def test_a_failure_of_our_own_side_concerns_all_workers(desk: Desk) -> None:
    desk.begin()
    desk.begin(R2, W2, "ack-2")
    assert desk.ping("dead", W2) is None
    desk.until_pinged(W2)
    assert desk.ping(None, W) is None
    assert desk.answer("dead", W2) is None


@pytest.mark.parametrize("sweep_first", [True, False])
def test_after_a_sleep_of_our_own_all_begins_anew(desk: Desk, sweep_first: bool) -> None:
    """The ping that ran out while we slept is told of before or after the next sweep."""
    desk.begin()
    desk.begin(R2, W2, "ack-2")
    for _ in range(2):
        desk.ping("silent")
    desk.answer("alive", W2)
    desk.until_pinged()
    desk.now += 60
    if sweep_first:
        assert desk.sweep() == []  # the silence is ours: W2 is not asked yet
    assert desk.answer("silent") is None
    assert desk.sweep() == []
    desk.run(STALL_S - SWEEP_S)
    assert desk.waiting == []
    assert [desk.ping("silent") is None for _ in range(3)] == [True, True, False]


def test_a_sweep_that_comes_a_little_late_is_no_sleep(desk: Desk) -> None:
    desk.begin()
    assert desk.ping("dead") is None
    desk.now += OVERSLEPT_S
    assert desk.sweep() == [W]
    assert desk.answer("dead") is not None


def test_a_later_writer_replaces_the_one_before(desk: Desk) -> None:
    desk.begin()
    assert desk.ping("dead") is None
    desk.begin(R, W2, "ack-2")
    desk.run(1)
    assert set(desk.pinged[1:]) == {W2}
    desk.answer("dead", W2)
    assert desk.ping("dead", W2) == Nak(W2, "dead", ("ack-2",))


def test_each_ack_subject_once(desk: Desk) -> None:
    desk.begin()
    desk.ping("dead")
    assert desk.ping("dead") is not None
    desk.begin()  # the same Started, read again
    desk.run(5)
    assert desk.waiting == []
    desk.begin(R, W, "ack-2")  # its next delivery
    desk.ping("dead")
    assert desk.ping("dead") == Nak(W, "dead", ("ack-2",))


def test_a_writer_without_an_ack_subject_is_not_watched(desk: Desk) -> None:
    desk.begin(ack_subject="")
    desk.run(5)
    assert desk.pinged == []


def test_nothing_is_remembered_of_what_is_over(desk: Desk) -> None:
    desk.begin()
    desk.begin(R2, W2, "ack-2")
    desk.ping("dead")
    assert desk.ping("dead") is not None
    desk.state.over(R)
    desk.state.over(R2)
    desk.answer("alive", W2)
    state = desk.state
    assert [state._workers, state._worker_of, state._asked, state._nakked] == [{}] * 4


# -- any history ------------------------------------------------------------------------------------


@dataclass
class Witness:
    """What the rules say of a history, told in its own words: answers by worker, newest last, each with when
    it was asked; and when what made the answers before it worthless happened."""

    answers: dict[WorkerId, list[tuple[float, Answer]]]
    heard_at: dict[WorkerId, float]
    restarted_at: float = 0.0
    cut_off_at: float = 0.0
    awake_since: float = 0.0

    def check(self, nak: Nak, now: float) -> None:
        assert now - max(self.restarted_at, self.cut_off_at) >= SETTLE_S
        needed = 2 if nak.verdict == "dead" else 3
        last = self.answers[nak.worker][-needed:]
        assert [answer for _, answer in last] == ["dead" if nak.verdict == "dead" else "silent"] * needed
        first = last[0][0]
        assert first > max(self.heard_at[nak.worker], self.restarted_at, self.cut_off_at, self.awake_since)
        if nak.verdict == "dead":
            assert last[1][0] - last[0][0] >= DEAD_PAUSE_S


WORKERS = st.sampled_from([W, W, W2])
RESPONSES = st.sampled_from([R, R2, R3])
SILENCE: list[Answer] = ["dead", "silent"]
INTERRUPTIONS = st.one_of(
    st.tuples(st.just("run"), st.sampled_from([1, 7, 110])),
    st.tuples(st.just("pings"), WORKERS, st.sampled_from(["alive", None]), st.just(1)),
    st.tuples(st.just("begun"), RESPONSES, WORKERS, st.integers(0, 1)),
    st.tuples(st.just("heard"), WORKERS),
    st.tuples(st.just("over"), RESPONSES),
    st.tuples(st.sampled_from(["reconnected", "slept"])),
)
EVENTS = st.one_of(
    INTERRUPTIONS,
    st.tuples(st.just("begun"), RESPONSES, WORKERS, st.integers(0, 1)),
    st.tuples(st.just("ask"), WORKERS),
    st.tuples(st.just("pings"), WORKERS, st.sampled_from(SILENCE), st.integers(1, 3)),
    st.tuples(st.just("pings"), WORKERS, st.sampled_from(SILENCE), st.integers(1, 3)),
)


class History:
    """Acts a history out, and lets the witness look at every verdict. ``holds``: which worker holds a
    response, under which ack subject."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.witness = Witness({W: [], W2: []}, {W: 0.0, W2: 0.0})
        self.holds: dict[ResponseId, tuple[WorkerId, str]] = {}
        self.nakked: set[str] = set()
        self.asked: dict[WorkerId, float] = {}

    def held_by(self, worker: WorkerId) -> list[str]:
        return sorted(ack for holder, ack in self.holds.values() if holder == worker)

    def run(self, sweeps: int) -> None:
        for _ in range(sweeps):
            self.desk.now += SWEEP_S
            for worker in self.desk.sweep():
                assert self.held_by(worker)
                assert worker not in self.asked
                silent_since = max(self.witness.heard_at[worker], self.witness.awake_since)
                assert self.desk.now - silent_since >= STALL_S
                self.asked[worker] = self.desk.now

    def ask(self, worker: WorkerId) -> bool:
        for _ in range(10):
            if worker not in self.asked:
                self.run(1)
        return worker in self.asked

    def pings(self, worker: WorkerId, answer: Answer | None, count: int) -> None:
        for _ in range(count):
            if self.ask(worker):
                self.answer(worker, answer)

    def answer(self, worker: WorkerId, answer: Answer | None) -> None:
        now, asked_at = self.desk.now, self.asked.pop(worker)
        if answer is None:
            self.witness.cut_off_at = now
        else:
            self.witness.answers[worker].append((asked_at, answer))
        if answer == "alive":
            self.witness.heard_at[worker] = now
        nak = self.desk.answer(answer, worker)
        if nak is not None:
            self.witness.check(nak, now)
            assert nak.worker == worker
            assert sorted(nak.ack_subjects) == self.held_by(worker)
            assert not self.nakked.intersection(nak.ack_subjects)
            self.nakked.update(nak.ack_subjects)
            self.holds = {held: by for held, by in self.holds.items() if by[0] != worker}

    def begun(self, response: ResponseId, worker: WorkerId, delivery: int) -> None:
        ack_subject = f"{response}-{delivery}"
        self.desk.begin(response, worker, ack_subject)
        self.holds.pop(response, None)
        if ack_subject not in self.nakked:
            self.holds[response] = worker, ack_subject
            self.witness.heard_at[worker] = self.desk.now

    def heard(self, worker: WorkerId) -> None:
        self.desk.state.heard(worker, self.desk.now)
        if self.held_by(worker):
            self.witness.heard_at[worker] = self.desk.now

    def over(self, response: ResponseId) -> None:
        self.desk.state.over(response)
        self.holds.pop(response, None)
        self.nakked -= {f"{response}-{delivery}" for delivery in range(2)}

    def reconnected(self) -> None:
        self.desk.state.reconnected(self.desk.now)
        self.witness.restarted_at = self.desk.now

    def slept(self) -> None:
        self.desk.now += 2.0
        self.witness.awake_since = self.desk.now


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=40))
def test_no_history_leads_to_a_wrong_verdict(events: list[tuple[object, ...]]) -> None:
    history = History()
    history.begun(R, W, 0)
    for name, *arguments in events:
        getattr(history, str(name))(*arguments)
    event("a verdict" if history.nakked else "no verdict")
