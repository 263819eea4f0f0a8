"""Frames and requests that no client sends by accident. The long run of it is ``python -m tests.fuzz``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.campaign import Campaign, faults
from tests.fuzz.requests import RequestAttacker, shapes
from tests.integration.gateway.processes import Gateway

WARM_UP, ROUNDS = 40, 40
GROWTH_MIB = 12  # what 16 attackers may leave behind in the allocator, and far below what they sent


@pytest.fixture
def watched(served: Gateway) -> Iterator[Gateway]:
    """Nothing of what is done to it may end it, or be a fault of its own by its log."""
    yield served
    assert served.running, served.output
    assert faults(served.output) == []


@pytest.mark.parametrize("name", shapes("host"))
async def test_a_malformed_request_is_one_request(watched: Gateway, name: str) -> None:
    await RequestAttacker(watched.url, 0).send_plain(name)


async def test_nothing_that_is_sent_breaks_a_gateway_or_makes_it_grow(watched: Gateway) -> None:
    campaign = Campaign(watched.url, watched.pid, seed=1)
    await campaign.run(WARM_UP)
    await campaign.settle()
    before = campaign.rss_mib()
    await campaign.run(ROUNDS)
    await campaign.settle()
    assert campaign.rss_mib() - before < GROWTH_MIB, campaign.report()
    attacked = {what for what, _ in campaign.seen}
    assert attacked >= set(shapes("host")), "every shape came up"
