"""The life of a job as a state machine: what it does in each case, and what it never does in any."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ERRORS, QueueAction
from workers import run_state as s
from workers.engine.base import RequestEnd
from workers.run_state import RunState, State

GOOD_ENDS = st.sampled_from(["stop", "length"]).map(lambda reason: RequestEnd(reason=reason))
BAD_ENDS = st.sampled_from(["invalid_token_id", "engine_rejected", "context_length_exceeded"]).map(
    lambda code: RequestEnd(code=code, message="no")
)
OUR_ENDS = st.just(RequestEnd(code="engine_failed", message="broke"))


def machine(deadline_s: float = 100.0) -> RunState:
    return RunState(deadline_s=deadline_s, hold_interval_s=5.0)


def run(state: RunState, *events: tuple[s.Event, float]) -> list[list[s.Effect]]:
    return [state.handle(event, now_s) for event, now_s in events]


def running(deadline_s: float = 100.0) -> RunState:
    state = machine(deadline_s)
    run(state, (s.JobRead(), 0.0), (s.Claimed(mine=True), 0.0))
    assert state.state is State.RUNNING
    return state


def test_the_straight_way() -> None:
    state, end = machine(), RequestEnd(reason="stop")
    assert run(
        state,
        (s.JobRead(), 0.0),
        (s.Claimed(mine=True), 0.0),
        (s.Tick(), 5.0),
        (s.LeaseSeen("mine"), 5.0),
        (s.EngineEnded(end), 6.0),
        (s.Stored(), 6.0),
    ) == [[s.ClaimLog()], [s.Submit()], [s.Look()], [s.Hold()], [s.Finish(end)], [s.Ack()]]
    assert (state.state, state.outcome) == (State.OVER, "completed")


def test_the_lease_is_checked_three_times_in_ack_wait_and_sooner_without_an_answer() -> None:
    state = running()
    assert state.due_s == 5.0
    assert state.handle(s.Tick(), 4.9) == []
    run(state, (s.LeaseSeen("mine"), 5.0))
    assert state.due_s == 10.0
    assert state.handle(s.LeaseSeen("unknown"), 10.0) == []
    assert state.due_s == 10.0 + s.RETRY_LOOK_S
    assert state.handle(s.Nudged(), 10.1) == [s.Look()]


def test_deadline_while_running_beats_the_lease() -> None:
    state = running(deadline_s=3.0)
    assert state.due_s == 3.0
    abort, fail = state.handle(s.Tick(), 3.0)
    assert abort == s.Abort()
    assert isinstance(fail, s.Fail)
    assert fail.code == "deadline_exceeded"
    assert state.handle(s.Stored(), 3.0) == [s.Ack()]
    assert state.outcome == "failed"


@pytest.mark.parametrize("ended", [True, False])
def test_late_job_is_closed_unless_its_log_has_ended(ended: bool) -> None:
    state = machine(deadline_s=0.0)
    assert state.handle(s.JobRead(), 0.0) == [s.ReadLog()]
    effects = state.handle(s.LogRead(ended), 0.0)
    assert [type(effect) for effect in effects] == ([s.Ack] if ended else [s.CloseLog, s.Ack])
    assert state.outcome == (None if ended else "failed")


def test_poison_is_buried_before_it_is_closed() -> None:
    """A worker that dies in between leaves a job that will be buried again, not one that is forgotten."""
    state = machine()
    state.handle(s.JobRead(), 0.0)
    effects = state.handle(s.Claimed(mine=False, ended=False), 0.0)
    assert [type(effect) for effect in effects] == [s.Bury, s.CloseLog, s.Ack]
    assert state.outcome == "refused"


def test_a_suspect_that_finds_another_one_comes_again_later() -> None:
    state = machine()
    state.handle(s.JobRead(), 0.0)
    assert state.handle(s.Claimed(mine=False, later=True), 0.0) == [s.Nak(s.QUARANTINE_PAUSE_S)]
    assert (state.state, state.outcome) == (State.OVER, None)


@pytest.mark.parametrize("addressed", [True, False])
def test_unreadable_job(addressed: bool) -> None:
    effects = machine().handle(s.JobUnreadable("broken", addressed), 0.0)
    assert [type(effect) for effect in effects] == (
        [s.Bury, s.CloseLog, s.Ack] if addressed else [s.Bury, s.Ack]
    )


@pytest.mark.parametrize("code", [code for code, spec in ERRORS.items() if spec.queue is QueueAction.NAK])
def test_the_engines_own_trouble_is_left_to_another_worker(code: str) -> None:
    state = running()
    assert state.handle(s.EngineEnded(RequestEnd(code=code, message="x")), 1.0) == [s.Abort(), s.Nak()]
    assert state.outcome == "failed"


@pytest.mark.parametrize(("done", "effects"), [(True, [s.Nak()]), (False, [])])
def test_hand_off_gives_the_job_back_only_if_it_was_ours(done: bool, effects: list[s.Effect]) -> None:
    state = running()
    assert state.handle(s.DrainOver(), 1.0) == [s.HandOff()]
    assert state.handle(s.HandedOff(done), 1.0) == effects


@pytest.mark.parametrize(("ended", "effects"), [(True, [s.Ack()]), (False, [])])
def test_refused_terminal_touches_the_job_only_if_the_log_has_ended(
    ended: bool, effects: list[s.Effect]
) -> None:
    state = running()
    state.handle(s.EngineEnded(RequestEnd(reason="stop")), 1.0)
    assert state.handle(s.Refused(ended), 1.0) == effects


@pytest.mark.parametrize("state_name", list(State))
def test_whatever_is_not_in_the_table_raises(state_name: State) -> None:
    samples: list[s.Event] = [
        s.JobRead(),
        s.JobUnreadable("x", True),
        s.LogRead(True),
        s.Claimed(mine=True),
        s.EngineEnded(RequestEnd(reason="stop")),
        s.LeaseSeen("mine"),
        s.Stored(),
        s.Refused(True),
        s.HandedOff(True),
        s.Broken(),
        s.Tick(),
        s.Nudged(),
        s.Superseded(),
        s.DrainOver(),
        s.EngineFailed(),
    ]
    assert {type(event) for event in samples} == set(s.Event.__args__)  # type: ignore[attr-defined]
    for event in samples:
        state = machine()
        state.state = state_name
        if type(event) in s.TRANSITIONS[state_name]:
            state.handle(event, 0.0)
            assert state.state in s.TRANSITIONS[state_name][type(event)]
        else:
            with pytest.raises(s.IllegalTransition):
                state.handle(event, 0.0)


@dataclass
class World:
    """Answers effects as the broker and the engine may, and keeps what was done."""

    data: st.DataObject
    done: list[s.Effect] = field(default_factory=list)
    proof_of_end: bool = False  # the log is known to have ended, or nobody can ever read the job
    fenced_off: bool = False

    def answer(self, effect: s.Effect) -> s.Event | None:
        self.done.append(effect)
        draw = self.data.draw
        if draw(st.integers(0, 19)) == 0 and isinstance(
            effect, s.CloseLog | s.Bury | s.ClaimLog | s.Finish | s.Fail
        ):
            return s.Broken()
        match effect:
            case s.ReadLog():
                self.proof_of_end = draw(st.booleans())
                return s.LogRead(self.proof_of_end)
            case s.ClaimLog():
                mine, ended = draw(st.booleans()), draw(st.booleans())
                self.proof_of_end = not mine and ended
                closed, later = draw(st.booleans()), not mine and not ended and draw(st.booleans())
                return s.Claimed(mine=mine, ended=ended and not mine, closed=closed, later=later)
            case s.Look():
                lease = draw(st.sampled_from(["mine", "lost", "ended", "gone", "unknown"]))
                self.proof_of_end |= lease == "ended"
                self.fenced_off |= lease == "lost"
                return s.LeaseSeen(lease)  # type: ignore[arg-type]
            case s.Finish() | s.Fail():
                if draw(st.booleans()):
                    self.proof_of_end = True
                    return s.Stored()
                self.proof_of_end = draw(st.booleans())
                self.fenced_off = not self.proof_of_end
                return s.Refused(self.proof_of_end)
            case s.HandOff():
                done = draw(st.booleans())
                self.fenced_off = not done
                return s.HandedOff(done)
            case s.CloseLog():
                self.proof_of_end = True
            case s.Bury():
                self.proof_of_end = True
        return None


@given(st.data())
def test_in_every_life(data: st.DataObject) -> None:
    state = machine(deadline_s=data.draw(st.sampled_from([0.0, 12.0, 100.0])))
    world = World(data)
    now_s = 0.0
    first = data.draw(st.sampled_from([s.JobRead(), s.JobUnreadable("x", True), s.JobUnreadable("x", False)]))
    event: s.Event | None = first
    news: st.SearchStrategy[s.Event] = st.one_of(
        st.just(s.Tick()),
        st.just(s.Nudged()),
        st.just(s.Superseded()),
        st.just(s.DrainOver()),
        st.just(s.EngineFailed()),
        st.one_of(GOOD_ENDS, BAD_ENDS, OUR_ENDS).map(s.EngineEnded),
    )
    while event is not None:
        brought: s.Event | None = None
        for effect in state.handle(event, now_s):
            brought = world.answer(effect)
            if isinstance(brought, s.Broken):
                break
        event = None if state.state is State.OVER else brought
        if event is None and state.state is not State.OVER:
            now_s += data.draw(st.floats(0, 20))
            event = data.draw(news)
    kinds = [type(effect) for effect in world.done]
    assert kinds.count(s.Ack) + kinds.count(s.Nak) <= 1
    assert kinds.count(s.Submit) <= 1
    assert kinds.count(s.Finish) + kinds.count(s.Fail) + kinds.count(s.CloseLog) <= 1
    if s.Ack in kinds:
        assert world.proof_of_end
    if world.fenced_off:  # rule 3: the job is another's now
        assert s.Ack not in kinds
        assert s.Nak not in kinds
        assert kinds[-1] is not s.Hold
    if s.Nak in kinds:
        assert kinds[-1] is s.Nak
    if (
        s.Submit in kinds
    ):  # the request does not stay in the engine (Finish and Fail follow its end or an Abort)
        assert {s.Abort, s.HandOff, s.Finish, s.Fail, s.Nak} & set(kinds)
