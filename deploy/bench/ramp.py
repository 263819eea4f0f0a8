"""Rising loads: which comes next, and where the knee is. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from deploy.bench.plan import ClosedLoop, Load, OpenLoop
from deploy.bench.result import Knee, Step

_KEPT_UP = 0.99  # of what was due is answered
_WELL_PAST = 0.7  # of the best power so far: the knee is behind us
_MOST_DOUBLINGS = 14


def power(step: Step) -> float:
    """Throughput over mean time to the end: greatest at the knee (Kleinrock, "Power and deterministic rules
    of thumb", 1979). 0 where nothing was completed."""
    return step.throughput.tokens_per_s / step.e2e_ms.mean if step.e2e_ms.mean else 0.0


def kept_up(step: Step) -> bool:
    """It answered what it was asked, and no backlog was left when the time was up."""
    responses = step.responses
    return responses.due > 0 and responses.completed >= _KEPT_UP * responses.due


def knee_of(steps: Sequence[Step]) -> Knee | None:
    """The step with the most power, if some load beyond it has less; None where there is only one step."""
    if len(steps) < 2:
        return None
    candidates = [index for index, step in enumerate(steps) if kept_up(step)]
    if not candidates:
        return Knee(None, "There is no knee: no load was answered in full.")
    best = max(candidates, key=lambda index: power(steps[index]))
    at = steps[best]
    beyond = [step for step in steps if step.load.value > at.load.value]
    if not beyond:
        return Knee(None, f"There is no knee up to {at.load}: throughput grew more than the time to the end.")
    return Knee(
        best, f"The knee is at {at.load}: {_beyond(at, min(beyond, key=lambda step: step.load.value))}"
    )


def _beyond(at: Step, next_: Step) -> str:
    if not kept_up(next_):
        responses = next_.responses
        return f"at {next_.load} only {responses.completed} of {responses.due} responses were completed."
    more = next_.throughput.tokens_per_s / at.throughput.tokens_per_s - 1
    slower = next_.e2e_ms.mean / at.e2e_ms.mean - 1
    return f"{next_.load} brings {more:+.0%} throughput for {slower:+.0%} time to the end."


class Search:
    """An automatic ramp: the load is doubled from ``first`` on until it is well past the knee, then tried
    once more on either side of it; not so where responses were left unfinished, which would weigh on that."""

    def __init__(self, first: Load) -> None:
        self._next: list[Load] = [first]
        self._steps: list[Step] = []
        self._refining = False

    def __iter__(self) -> Search:
        return self

    def __next__(self) -> Load:
        """The load to measure now."""
        if not self._next:
            raise StopIteration
        return self._next.pop(0)

    def measured(self, step: Step) -> None:
        self._steps.append(step)
        if self._refining:
            return
        best = max(map(power, self._steps))
        past = not kept_up(step) or power(step) < _WELL_PAST * best
        if past or len(self._steps) > _MOST_DOUBLINGS:
            self._refining = True
            self._next = [] if step.responses.unfinished else self._around_the_best()
        else:
            self._next = [with_value(step.load, step.load.value * 2)]

    def _around_the_best(self) -> list[Load]:
        kept = [step for step in self._steps if kept_up(step)]
        if not kept:
            return []
        best = max(kept, key=power).load
        measured = {step.load for step in self._steps}
        sides = (with_value(best, best.value / 2**0.5), with_value(best, best.value * 2**0.5))
        return [side for side in sides if side not in measured]


def with_value(load: Load, value: float) -> Load:
    if isinstance(load, OpenLoop):
        return msgspec.structs.replace(load, rate=round(value, 2))
    return ClosedLoop(max(1, round(value)))
