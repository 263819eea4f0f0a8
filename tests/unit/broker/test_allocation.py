"""Which queue is asked for how many jobs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.allocation import FLOOR_EVERY, allocate

QUEUES = 6
counts = st.lists(st.integers(0, 40), min_size=QUEUES, max_size=QUEUES)


@given(free=st.integers(-3, 200), pending=counts, outstanding=counts, turn=st.integers(0, 1000))
def test_never_more_than_free_slots(free: int, pending: list[int], outstanding: list[int], turn: int) -> None:
    asks = allocate(free, pending, outstanding, turn)
    assert min(asks) >= 0
    assert sum(asks) <= max(0, free - sum(outstanding))


@given(free=st.integers(0, 200), pending=counts, outstanding=counts, turn=st.integers(0, 1000))
def test_no_slot_is_kept_from_known_work(
    free: int, pending: list[int], outstanding: list[int], turn: int
) -> None:
    asks = allocate(free, pending, outstanding, turn)
    unserved = sum(max(0, p - o - a) for p, o, a in zip(pending, outstanding, asks, strict=True))
    room_left = free - sum(outstanding) - sum(asks)
    assert unserved == 0 or room_left <= 0


@given(free=st.integers(0, 200), pending=counts, turn=st.integers(0, 1000))
def test_the_best_queue_with_a_backlog_comes_first(free: int, pending: list[int], turn: int) -> None:
    floor = 1 if turn % FLOOR_EVERY == FLOOR_EVERY - 1 else 0
    assert allocate(free, pending, [0] * QUEUES, turn)[0] >= min(pending[0], free - floor)


def test_slots_in_plenty_watch_every_queue() -> None:
    assert allocate(64, [0] * 6, [0] * 6) == [1] * 6
    assert allocate(64, [0] * 6, [1] * 6) == [0] * 6


def test_nothing_is_asked_without_slots() -> None:
    assert allocate(0, [9] * 6, [0] * 6) == [0] * 6
    assert allocate(3, [9] * 6, [1, 1, 1, 0, 0, 0]) == [0] * 6


def test_a_backlog_takes_the_free_slots_in_order() -> None:
    assert allocate(10, [4, 20, 0, 0, 0, 0], [0] * 6) == [4, 6, 0, 0, 0, 0]


def test_few_slots_take_turns_and_the_best_queue_has_half_of_one() -> None:
    watched = [allocate(1, [0] * 6, [0] * 6, turn).index(1) for turn in range(200)]
    assert set(watched) == set(range(6))
    assert watched.count(0) >= 80
    watched_by_three = [allocate(3, [0] * 6, [0] * 6, turn) for turn in range(20) if turn % FLOOR_EVERY != 7]
    assert all(asks[0] == 1 and sum(asks) == 3 for asks in watched_by_three)


def test_no_queue_starves_behind_a_backlog() -> None:
    served = [0] * 6
    for turn in range(FLOOR_EVERY * 5):
        for queue, asked in enumerate(allocate(1, [1000] * 6, [0] * 6, turn)):
            served[queue] += asked
    assert served == [FLOOR_EVERY * 5 - 5, 1, 1, 1, 1, 1]


def test_one_queue() -> None:
    assert allocate(3, [0], [0], turn=7) == [1]


def test_a_better_queue_is_asked_before_a_known_backlog_below_it() -> None:
    """Else a job in it would be heard of only when the lower backlog is done."""
    pending, nothing = [0, 0, 0, 900, 0, 0], [False] * 6
    assert allocate(2, pending, [0] * 6, known=nothing) == [2, 0, 0, 0, 0, 0]
    assert allocate(2, pending, [0] * 6, known=[True, *nothing[1:]]) == [0, 2, 0, 0, 0, 0]
    assert allocate(2, pending, [0] * 6, known=[True, True, True, False, False, False]) == [0, 0, 0, 2, 0, 0]
    assert allocate(2, pending, [1, 0, 0, 0, 0, 0], known=[False, True, True, *nothing[3:]]) == [
        0,
        0,
        0,
        1,
        0,
        0,
    ]


def test_a_floor_does_not_look_again_where_nothing_was() -> None:
    turn = FLOOR_EVERY - 1  # of queue 1
    assert allocate(1, [9, 0, 0, 0, 0, 0], [0] * 6, turn, known=[False] * 6) == [0, 1, 0, 0, 0, 0]
    assert allocate(1, [9, 0, 0, 0, 0, 0], [0] * 6, turn, known=[True] * 6) == [1, 0, 0, 0, 0, 0]


@given(
    free=st.integers(0, 60),
    pending=counts,
    outstanding=counts,
    reserved=st.integers(0, 8),
    known=st.lists(st.booleans(), min_size=QUEUES, max_size=QUEUES),
    turn=st.integers(0, 100),
)
def test_reserved_slots_are_the_best_queues(
    free: int, pending: list[int], outstanding: list[int], reserved: int, known: list[bool], turn: int
) -> None:
    asks = allocate(free, pending, outstanding, turn, known=known, reserved=reserved)
    assert sum(asks) <= max(0, free - sum(outstanding))
    if any(asks[1:]):
        assert sum(asks[1:]) + sum(outstanding[1:]) <= free - reserved


def test_a_job_of_the_best_queue_finds_a_reserved_slot() -> None:
    assert allocate(1, [0, 0, 900, 0, 0, 0], [0] * 6, reserved=1) == [1, 0, 0, 0, 0, 0]
