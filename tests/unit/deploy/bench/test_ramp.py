"""Where the knee is, and the loads that find it."""

from __future__ import annotations

import msgspec
import pytest

from deploy.bench.plan import Load
from deploy.bench.ramp import Search, knee_of
from deploy.bench.result import Step
from tests.unit.deploy.bench.results import ClosedLoop, OpenLoop, served, step


def test_the_knee_of_a_closed_loop_is_where_the_slots_are_full() -> None:
    steps = [served(ClosedLoop(count), slots=16) for count in (1, 2, 4, 8, 16, 32, 64)]
    knee = knee_of(steps)
    assert knee is not None
    assert knee.step == 4
    assert (
        knee.why == "The knee is at 16 at once: 32 at once brings +0% throughput for +100% time to the end."
    )


def test_the_knee_of_an_open_loop_is_before_the_queue_grows() -> None:
    steps = [served(OpenLoop(rate), slots=10) for rate in (1, 2, 4, 5, 6, 8, 9, 12)]
    knee = knee_of(steps)
    assert knee is not None
    assert knee.step is not None
    assert steps[knee.step].load == OpenLoop(5)


def test_a_load_that_was_not_answered_is_no_knee() -> None:
    steps = [step(OpenLoop(1), 10, 100), step(OpenLoop(2), 500, 100, completed=60)]
    knee = knee_of(steps)
    assert knee is not None
    assert knee.step == 0
    assert knee.why == "The knee is at 1/s: at 2/s only 60 of 100 responses were completed."


def test_no_knee_is_said_to_be_none() -> None:
    rising = knee_of([served(ClosedLoop(count), slots=99) for count in (1, 2, 4)])
    assert rising is not None
    assert rising.step is None
    assert rising.why.startswith("There is no knee up to 4 at once")
    failing = knee_of([step(ClosedLoop(count), 9, 9, completed=1) for count in (1, 2)])
    assert failing is not None
    assert failing.step is None
    assert knee_of([served(ClosedLoop(1), slots=4)]) is None


def searched(first: Load, slots: int) -> list[Step]:
    search, steps = Search(first), []
    for load in search:
        steps.append(served(load, slots))
        search.measured(steps[-1])
    return steps


@pytest.mark.parametrize("slots", [1, 3, 10, 64, 500])
def test_a_search_of_concurrencies_comes_near_the_slots(slots: int) -> None:
    steps = searched(ClosedLoop(1), slots)
    knee = knee_of(steps)
    assert knee is not None
    assert knee.step is not None
    assert slots / 1.5 <= steps[knee.step].load.value <= slots * 1.5
    assert len(steps) <= 14


def test_a_search_of_rates_goes_on_until_it_is_past_the_knee() -> None:
    steps = searched(OpenLoop(1.0), slots=40)
    assert [each.load.value for each in steps] == [1, 2, 4, 8, 16, 32, 11.31, 22.63]
    knee = knee_of(steps)
    assert knee is not None
    assert knee.step == 7  # half of what it can do, as theory has it for this server


def test_what_was_left_unfinished_ends_the_search() -> None:
    search = Search(ClosedLoop(1))
    search.measured(served(next(search), slots=4))
    left = step(next(search), 9, 9, completed=50)
    responses = msgspec.structs.replace(left.responses, refused=0, unfinished=50)
    search.measured(msgspec.structs.replace(left, responses=responses))
    assert list(search) == []


def test_a_server_that_answers_nothing_ends_the_search() -> None:
    search = Search(ClosedLoop(1))
    search.measured(step(next(search), 0, 0, completed=0))
    assert list(search) == []
