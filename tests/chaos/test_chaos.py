"""The chaos program, short: under every kind of trouble no response is lost, changed or ended twice."""

from __future__ import annotations

import random

import pytest

from tests.chaos.campaign import campaign
from tests.chaos.faults import KINDS, schedule
from tests.chaos.world import Sizes

SEED = 7
SECONDS = 45.0


@pytest.mark.timeout(300)
async def test_nothing_is_lost_and_nothing_comes_twice() -> None:
    lines: list[str] = []
    sizes = Sizes(clients=16)
    async with campaign(SEED, sizes, lines.append, every_s=2.0) as chaos:
        await chaos.round(0, SECONDS)
        report = await chaos.finish()
    told = "\n".join(lines)
    assert report.violations == [], told
    assert sum(report.faults.values()) >= 8, told
    assert report.responses >= 100, told


def test_a_seed_stands_for_one_schedule() -> None:
    first, again, other = (schedule(random.Random(seed), 3600, 4, 3, 2) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert {planned.kind for planned in first} == set(KINDS)


def test_a_worker_and_a_gateway_are_always_left() -> None:
    plan = schedule(random.Random(3), 3600, 1, 3, 2)
    for number, new in enumerate(plan):
        busy = [old for old in plan[: number + 1] if old.busy_until_s > new.at_s]
        assert len({each.index for each in busy if each.kind.target == "worker"}) <= 2
        assert len({each.index for each in busy if each.kind.target == "gateway"}) <= 1
