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
    """Of three steps at least, the one with the most power; None where none kept up."""
    candidates = [index for index, step in enumerate(steps) if kept_up(step)]
    if len(steps) < 3 or not candidates:
        return None
    best = max(candidates, key=lambda index: power(steps[index]))
    load = steps[best].load
    beyond = [step for step in steps if step.load.value > load.value]
    if not beyond:
        return Knee(
            best, load, "no knee up to the highest load: latency grew less than throughput all the way"
        )
    return Knee(best, load, _why(steps[best], min(beyond, key=lambda step: step.load.value)))


def _why(at: Step, beyond: Step) -> str:
    if not kept_up(beyond):
        responses = beyond.responses
        return f"at {beyond.load} only {responses.completed} of {responses.due} responses were completed"
    more = beyond.throughput.tokens_per_s / at.throughput.tokens_per_s - 1
    slower = beyond.e2e_ms.mean / at.e2e_ms.mean - 1
    return f"{beyond.load} brings {more:+.0%} throughput for {slower:+.0%} time to the end"


class Search:
    """An automatic ramp: the load is doubled from ``first`` on until it is well past the knee, then tried
    once more on either side of it."""

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
            self._next = self._around_the_best()
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
