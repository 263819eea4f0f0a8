"""The checker can fail: each rule of the reply log, broken in the running processes, is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from tests.chaos.calls import Behaviour
from tests.chaos.campaign import campaign
from tests.chaos.checks import Violation
from tests.chaos.faults import BY_NAME, Planned
from tests.chaos.load import Load
from tests.chaos.mutants import MUTANTS
from tests.chaos.world import Sizes

pytestmark = pytest.mark.timeout(240)

SECONDS = 7.0
CALL_LIMIT_S = 15.0
LEAK_LIMIT_S = 3.0  # a mutant may leave what it likes
CONTROL_CALL_LIMIT_S = 60.0  # what was lost on its way to a worker comes again after ack_wait
CONTROL_LEAK_LIMIT_S = 45.0


@dataclass(frozen=True)
class Trial:
    """A fault under which the mutation shows, and as what. ``ack_wait_s``: the lease is looked at three
    times in it."""

    mutant: str
    faults: Mapping[str, float]  # kind, and how long it lasts
    shows_as: str
    ack_wait_s: float = 30
    behaviour: Behaviour = "plain"


TRIALS = (
    Trial("no_fence", {"worker paused": 5}, "the log's rules"),
    Trial("unconditional_terminal", {"worker paused": 5}, "the log's rules"),
    Trial("no_overlap_check", {"worker link lost": 1}, "each token once and in order"),
    Trial("no_republish", {"worker link lost": 1}, "complete"),
    Trial("no_lease", {}, "the lease", ack_wait_s=3, behaviour="cancels"),
    Trial("ack_before_finish", {"worker host gone": 0}, "one terminal each"),
)
CONTROLS = [
    replace(trial, mutant="", shows_as="")
    for number, trial in enumerate(TRIALS)
    if all(trial.faults != earlier.faults for earlier in TRIALS[:number])
]


def test_every_mutant_has_a_trial() -> None:
    assert [trial.mutant for trial in TRIALS] == list(MUTANTS)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.mutant)
async def test_a_mutant_is_caught(trial: Trial) -> None:
    found = await violations(trial)
    assert trial.shows_as in {violation.rule for violation in found}, found


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: "".join(control.faults) or "no fault")
async def test_the_same_trial_without_a_mutation_finds_nothing(control: Trial) -> None:
    assert await violations(control) == []


async def violations(trial: Trial) -> list[Violation]:
    sizes = Sizes(
        gateways=1,
        workers=2,
        slots=16,
        clients=12,
        ack_wait_s=trial.ack_wait_s,
        grace_s=60,  # longer than a trial: what nobody ends stays without end
        mutant=trial.mutant,
    )
    plan = [Planned(1.5, BY_NAME[kind], 0, lasts_s) for kind, lasts_s in trial.faults.items()]
    leak_limit_s = LEAK_LIMIT_S if trial.mutant else CONTROL_LEAK_LIMIT_S
    lines: list[str] = []
    async with campaign(1, sizes, lines.append, leak_limit_s=leak_limit_s) as chaos:
        load = Load(
            chaos.world.urls,
            seed="mutants",
            clients=sizes.clients,
            grace_s=sizes.grace_s,
            call_limit_s=CALL_LIMIT_S if trial.mutant else CONTROL_CALL_LIMIT_S,
            behaviours={trial.behaviour: 1},
        )
        await chaos.strike(load, plan, SECONDS)
        return chaos.report.violations
