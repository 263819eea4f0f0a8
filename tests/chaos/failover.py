"""How long a client waited when its worker went: measured there, taken apart by what JetStream stored.

    fault ---- detect ---- pulled ---- claim ---- Started stored ---- prefill ---- first new tokens stored
         client's silence: last event before ............................................. first event after

``excess`` is the silence without the continued prefill, which any system pays. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from schemas.ids import ResponseId
from tests.chaos.calls import Call
from tests.chaos.faults import Injected
from tests.chaos.truth import Attempt, Truth

DEATHS = {
    "worker process killed": "killed",
    "worker host gone": "host gone",
    "worker paused": "hung",
    "worker drained": "drained",
    "all workers restarted in turn": "drained",
}
ALONE_MS = 1000.0  # no other fault so long before, nor until the client has its next event


@dataclass(frozen=True)
class Failover:
    """Milliseconds. ``alone``: no other fault had a part in it."""

    kind: str
    response: str
    silence: float
    detect: float
    claim: float
    prefill: float
    alone: bool

    @property
    def excess(self) -> float:
        return max(0.0, self.silence - self.prefill)


def failovers(
    calls: Sequence[Call], truths: Mapping[ResponseId, Truth], faults: Sequence[Injected]
) -> list[Failover]:
    """Of streams that were flowing when their worker was struck, and went on elsewhere because of it."""
    found: list[Failover] = []
    deaths = [fault for fault in faults if fault.kind in DEATHS]
    for call in calls:
        truth = truths.get(ResponseId(call.id))
        if truth is None or call.behaviour not in ("plain", "cancels"):  # others make silences of their own
            continue
        for before, after in _successions(truth):
            death = _death(before, after, deaths)
            failover = _measure(call, before, after, death, faults) if death is not None else None
            if failover is not None:
                found.append(failover)
    return found


def _successions(truth: Truth) -> Iterator[tuple[Attempt, Attempt]]:
    for before, after in zip(truth.attempts, truth.attempts[1:], strict=False):
        if before.first_tokens_ms is not None and after.first_tokens_ms is not None:
            yield before, after


def _death(before: Attempt, after: Attempt, deaths: Sequence[Injected]) -> Injected | None:
    """The last one of its worker before the next writer pulled the job."""
    its = [
        d for d in deaths if d.worker_id == before.worker and before.stored_ms <= d.at_ms <= after.pulled_ms
    ]
    return its[-1] if its else None


def _measure(
    call: Call, before: Attempt, after: Attempt, death: Injected, faults: Sequence[Injected]
) -> Failover | None:
    assert after.first_tokens_ms is not None
    later = next((n for n, seen in enumerate(call.seen) if seen.number >= 1000 * (after.prior + 1)), 0)
    if later == 0 or call.seen[later - 1].number < 1000:
        return None  # it saw none of the one or of the other
    silent_from, silent_to = call.seen[later - 1].at_ms, call.seen[later].at_ms
    begun_ms = before.handed_off_ms if before.handed_off_ms is not None else death.at_ms
    others = [fault for fault in faults if fault is not death and fault.target != "valkey"]
    return Failover(
        kind=DEATHS[death.kind],
        response=call.id,
        silence=silent_to - silent_from,
        detect=after.pulled_ms - begun_ms,
        claim=after.stored_ms - after.pulled_ms,
        prefill=after.first_tokens_ms - after.stored_ms,
        alone=not any(other.touches(death.at_ms - ALONE_MS, silent_to) for other in others),
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest, by rank."""
    ordered = sorted(values)
    ranks = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
    last = len(ordered) - 1
    return {name: round(ordered[min(last, int(rank * len(ordered)))], 1) for name, rank in ranks.items()}
