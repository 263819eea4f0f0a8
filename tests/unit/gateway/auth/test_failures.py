"""Wrong credentials are counted by address and minute."""

from __future__ import annotations

from gateway.auth import failures
from gateway.auth.failures import Failures


def test_each_address_has_so_many_a_minute() -> None:
    counted = Failures(2)
    numbers = [counted.count("a", now) for now in (0.0, 10.0, 20.0)]
    assert [counted.exceeds(number) for number in numbers] == [False, False, True]
    assert not counted.exceeds(counted.count("b", 20.0))
    assert not counted.exceeds(counted.count("a", 61.0))


def test_as_many_addresses_as_there_are_take_no_more_memory() -> None:
    counted = Failures(1)
    for number in range(failures.MAX_ADDRESSES + 10):
        counted.count(str(number), 0.0)
    assert len(counted._windows) == failures.MAX_ADDRESSES
    assert counted.count("0", 0.0) == 1, "the oldest is forgotten"
    assert counted.count(str(failures.MAX_ADDRESSES), 0.0) == 2
