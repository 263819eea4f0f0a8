"""What the guardian decides: a hang, the jobs to give back, another life or the end."""

from __future__ import annotations

import signal

import pytest

from workers.watch import TICK_S, Again, Exit, Restarts, Watch

READY = b"ready wk-1\n"


def ready(hang_timeout_s: float = 5.0) -> Watch:
    watch = Watch(hang_timeout_s)
    watch.line.feed(READY)
    return watch


def ticks_until_hung(watch: Watch) -> int:
    count = 1
    while not watch.tick():
        count += 1
    return count


def test_silence_for_the_configured_time_is_a_hang() -> None:
    assert ticks_until_hung(ready(5.0)) == 5.0 / TICK_S


def test_a_beat_in_between_starts_it_over() -> None:
    watch = ready(5.0)
    for _ in range(9):
        assert not watch.tick()
    watch.line.feed(b"alive 7.0\n")
    assert ticks_until_hung(watch) == 1 + 5.0 / TICK_S


def test_loading_an_engine_is_no_hang() -> None:
    watch = Watch(2.0)
    assert not any(watch.tick() for _ in range(1000))


def test_the_time_of_loading_does_not_count_when_it_is_ready() -> None:
    watch = Watch(2.0)
    assert not any(watch.tick() for _ in range(100))
    watch.line.feed(READY)
    assert ticks_until_hung(watch) == 2.0 / TICK_S


def test_a_tiny_limit_does_not_kill_the_busy() -> None:
    assert ticks_until_hung(ready(0.01)) == 2.0 / TICK_S


def test_what_hung_owes_nothing() -> None:
    watch = ready(2.0)
    watch.line.feed(b"took a\n")
    assert watch.owed() == ["a"]
    ticks_until_hung(watch)
    assert watch.owed() == []


def test_jobs_are_owed_as_long_as_nobody_else_can_have_them() -> None:
    watch = ready()
    watch.line.feed(b"alive 100.0\ntook a\n")
    assert watch.owed_until_s(ack_wait_s=15) == 110.0


@pytest.mark.parametrize(("status", "code"), [(1, 1), (2, 2), (-9, 137), (0, 0)])
def test_one_that_was_never_ready_ends_the_guardian(status: int, code: int) -> None:
    assert Restarts().after(status, Watch(5.0), 0.0, stopping=False) == Exit(code)


def test_one_that_was_ready_once_is_started_for_ever() -> None:
    restarts = Restarts()
    waits = [restarts.after(-9, ready(), 0.1, stopping=False)]
    waits += [restarts.after(1, Watch(5.0), 0.0, stopping=False) for _ in range(8)]
    assert waits == [Again(wait_s) for wait_s in (0.0, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0)]
    assert restarts.after(-9, ready(), 60.0, stopping=False) == Again(0.0)  # after a minute of health


@pytest.mark.parametrize(("status", "code"), [(0, 0), (1, 1), (-9, 137)])
def test_one_that_is_to_stop_is_not_started_again(status: int, code: int) -> None:
    assert Restarts().after(status, ready(), 5.0, stopping=True) == Exit(code)


def test_one_that_died_of_our_own_signal_before_it_could_take_it_has_stopped() -> None:
    assert Restarts().after(-signal.SIGTERM, Watch(5.0), 0.0, stopping=True) == Exit(0)


def test_one_that_somebody_else_has_drained_has_stopped() -> None:
    assert Restarts().after(0, ready(), 5.0, stopping=False) == Exit(0)
