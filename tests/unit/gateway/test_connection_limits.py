"""How many connections an address may hold open."""

from __future__ import annotations

import pytest

from broker.settings import ConfigError
from gateway.connection_limits import SPARE_CONNECTIONS, OpenConnections
from schemas.config import Gateway


def test_one_address_has_twice_what_it_may_use_so_that_it_can_be_told() -> None:
    held = OpenConnections(Gateway(max_connections_per_address=2))
    places = [held.take("203.0.113.1") for _ in range(4)]
    assert None not in places
    assert held.take("203.0.113.1") is None
    assert held.take("203.0.113.2") is not None
    held.give_back(str(places[0]))
    assert held.take("203.0.113.1") is not None


def test_this_machine_and_proxies_have_as_many_as_there_are() -> None:
    held = OpenConnections(Gateway(max_connections_per_address=1))
    assert None not in [held.take("127.0.0.1") for _ in range(5)]
    behind = OpenConnections(Gateway(max_connections_per_address=1, trusted_proxies=("10.0.0.1",)))
    assert None not in [behind.take("10.0.0.1") for _ in range(5)]
    assert [behind.take("10.0.0.2") is None for _ in range(3)] == [False, False, True]


def test_a_proxys_address_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"gateway\.trusted_proxies"):
        OpenConnections(Gateway(trusted_proxies=("10.0.0.300",)))


def test_all_together_have_no_more_than_there_are_files() -> None:
    held = OpenConnections(Gateway(max_connections=1, max_connections_per_address=0))
    assert None not in [held.take("203.0.113.1") for _ in range(1 + SPARE_CONNECTIONS)]
    assert held.take("203.0.113.2") is None
