"""Position and estimate: what a response is told while it waits."""

from __future__ import annotations

from broker.queues import QueueState
from broker.topology import QUEUES
from gateway.backlog import STALE_S, Backlog
from gateway.generation import Queued
from gateway.queue_watch import is_news
from schemas.ids import ResponseId
from schemas.job import Lane, Priority

SLOTS = 4


def states(*, held: int = 0, **queues: int) -> tuple[QueueState, ...]:
    """``interactive_fair=3``: so many wait there. Whatever was pulled was pulled there, too."""
    waiting = [queues.get(f"{priority}_{lane}", 0) for priority, lane in QUEUES]
    pulled, seq = queues.get("pulled", 0), queues.get("seq", 0)
    first = QueueState(waiting[0], held, pulled, seq)
    return (first, *(QueueState(count) for count in waiting[1:]))


def look(backlog: Backlog, now_s: float, **seen: int) -> None:
    backlog.looked(states(**seen), backlog.mark(), now_s)


def enter(backlog: Backlog, count: int, priority: Priority = "interactive", lane: Lane = "fair") -> None:
    for _ in range(count):
        n = backlog.waiting_here + 1
        backlog.entered(ResponseId(f"r{n}"), priority, lane, n)


def position(backlog: Backlog, response: str, now_s: float) -> int:
    (wait,) = backlog.waits_of([ResponseId(response)], SLOTS, now_s)
    assert wait is not None
    return wait.position


def test_nobody_waits_where_slots_are_free() -> None:
    backlog = Backlog()
    assert backlog.wait_of_next("interactive", "fair", SLOTS, 0.0) == Queued(0, 0)
    look(backlog, 0.0, held=SLOTS - 1)
    assert backlog.wait_of_next("batch", "over", SLOTS, 0.1) == Queued(0, 0)


def test_a_burst_counts_before_anybody_looked() -> None:
    backlog = Backlog()
    enter(backlog, SLOTS + 2)
    assert backlog.wait_of_next("interactive", "fair", SLOTS, 0.0).position == 3
    for n in range(SLOTS):
        backlog.started(ResponseId(f"r{n + 1}"))
    assert backlog.wait_of_next("interactive", "fair", SLOTS, 0.0).position == 3
    assert backlog.wait_of_next("interactive", "fair", SLOTS, 0.0).eta_ms is None  # nothing has ended yet


def test_what_happened_since_the_look_counts_on_top() -> None:
    backlog = Backlog()
    look(backlog, 0.0, held=SLOTS, interactive_fair=5)
    assert backlog.depth("interactive", 0.1) == 5
    enter(backlog, 2)
    assert backlog.depth("interactive", 0.1) == 7
    assert backlog.wait_of_next("interactive", "fair", SLOTS, 0.1).position == 8
    backlog.started(ResponseId("r1"))
    assert backlog.depth("interactive", 0.1) == 6
    assert backlog.depth("batch", 0.1) == 0


def test_better_queues_come_first() -> None:
    backlog = Backlog()
    look(backlog, 0.0, held=SLOTS, interactive_fair=2, batch_fair=3, interactive_over=10)
    assert backlog.wait_of_next("interactive", "fair", SLOTS, 0.0).position == 3
    assert backlog.wait_of_next("standard", "fair", SLOTS, 0.0).position == 3
    assert backlog.wait_of_next("batch", "fair", SLOTS, 0.0).position == 6
    assert backlog.wait_of_next("interactive", "over", SLOTS, 0.0).position == 16
    assert backlog.depth("interactive", 0.0) == 12


def test_a_place_is_known_at_the_first_look_and_only_gets_better() -> None:
    backlog = Backlog()
    enter(backlog, 3)  # r1, r2, r3 behind 7 jobs of other gateways
    look(backlog, 0.0, held=SLOTS, interactive_fair=10)
    assert [position(backlog, f"r{n}", 0.0) for n in (1, 2, 3)] == [8, 9, 10]
    look(backlog, 1.0, held=SLOTS, interactive_fair=46, pulled=4, seq=0)  # 40 came behind
    assert [position(backlog, f"r{n}", 1.0) for n in (1, 2, 3)] == [4, 5, 6]
    look(backlog, 2.0, held=SLOTS, interactive_fair=41, pulled=9, seq=1)  # r1 is delivered
    assert [position(backlog, f"r{n}", 2.0) for n in (1, 2, 3)] == [0, 1, 1]
    backlog.started(ResponseId("r1"))
    assert backlog.waits_of([ResponseId("r1")], SLOTS, 2.0) == [None]


def test_the_estimate_is_the_rate_at_which_jobs_are_pulled() -> None:
    backlog = Backlog()
    for second in range(4):
        look(backlog, float(second), held=SLOTS, interactive_fair=100 - 10 * second, pulled=10 * second)
    wait = backlog.wait_of_next("interactive", "fair", SLOTS, 3.0)
    assert wait.position == 71
    assert wait.eta_ms is not None
    assert abs(wait.eta_ms - 7100) < 50


def test_before_that_it_is_what_the_slots_can_do() -> None:
    backlog = Backlog()
    enter(backlog, SLOTS + 1)
    for n in range(SLOTS + 1):
        backlog.started(ResponseId(f"r{n + 1}"))
    backlog.ended(ResponseId("r5"), 2.0)
    assert backlog.wait_of_next("interactive", "fair", SLOTS, 0.0) == Queued(1, 500)


def test_an_old_look_says_nothing() -> None:
    backlog = Backlog()
    look(backlog, 0.0, held=SLOTS, interactive_fair=1000)
    assert backlog.depth("interactive", STALE_S + 1) == 0
    assert backlog.wait_of_next("interactive", "fair", SLOTS, STALE_S + 1) == Queued(0, 0)


def test_nothing_is_left_of_what_ended() -> None:
    backlog = Backlog()
    enter(backlog, 3)
    backlog.started(ResponseId("r1"))
    for n in (1, 2, 3):
        backlog.ended(ResponseId(f"r{n}"), None)
    assert backlog.idle
    assert backlog.wait_of_next("interactive", "fair", SLOTS, 0.0) == Queued(0, 0)


def test_only_change_is_news() -> None:
    assert is_news(None, Queued(3, None))
    assert is_news(Queued(3, None), Queued(3, 100))
    assert not is_news(Queued(3, 900), Queued(3, 100))
    assert is_news(Queued(3, 900), Queued(2, 600))
    assert not is_news(Queued(1000, 900), Queued(990, 600))
    assert is_news(Queued(1000, 900), Queued(950, 600))
