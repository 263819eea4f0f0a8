"""Limits of one tenant on one gateway alone: what counts while Redis is away. Pure: time comes in.

The same rules as the script of ``gateway/limits.py``, which tests hold against this: GCRA (the generic cell
rate algorithm of ITU-T I.371) with a burst of one minute's worth, and no charge unless every limit agrees.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from schemas.ids import TenantId
from schemas.job import Lane
from schemas.quota import Quota

LimitName = Literal["requests", "tokens", "concurrent"]
MINUTE_MS = 60_000.0
MAX_TENANTS = 10_000  # remembered; beyond, the ones that asked longest ago begin anew


@dataclass(frozen=True, slots=True)
class Room:
    """Of one limit per minute: what is left of it, and when all of it will be."""

    limit: int
    remaining: int
    reset_ms: float


@dataclass(frozen=True, slots=True)
class Ruling:
    """``refused``: the limit that did it; then nothing was charged, and ``wait_ms`` says when the same
    request would pass (infinite: never, it asks for more than a minute's worth). ``requests`` and ``tokens``
    are None where there is no such limit."""

    lane: Lane = "fair"
    refused: LimitName | None = None
    wait_ms: float = 0.0
    requests: Room | None = None
    tokens: Room | None = None
    repeats: bool = False  # the same response has its place already, and nothing was charged


def room_of(limit: int, full_at_ms: float, now_ms: float) -> Room | None:
    """``full_at_ms``: the theoretical arrival time, when the bucket would be full again."""
    if not limit:
        return None
    owed_ms = max(0.0, full_at_ms - now_ms)
    return Room(limit, max(0, math.floor((MINUTE_MS - owed_ms) * limit / MINUTE_MS + 1e-6)), owed_ms)


def lane_of(in_flight: int, slots: int, active_tenants: int, min_share: int) -> Lane:
    """For a tenant that has ``in_flight`` jobs on the model already; ``active_tenants`` counts it too."""
    return "fair" if in_flight < max(min_share, slots // max(1, active_tenants)) else "over"


@dataclass(slots=True)
class _Full:
    requests_ms: float = 0.0
    tokens_ms: float = 0.0


class LocalRates:
    """Requests and tokens per minute, by tenant."""

    def __init__(self) -> None:
        self._full: OrderedDict[TenantId, _Full] = OrderedDict()

    def ask(
        self, tenant: TenantId, quota: Quota, *, tokens: int, in_flight: int, lane: Lane, now_ms: float
    ) -> Ruling:
        full = self._of(tenant)
        asked = {
            "requests": (quota.requests_per_minute, full.requests_ms, 1),
            "tokens": (quota.tokens_per_minute, full.tokens_ms, tokens),
        }
        wait: dict[str, float] = {}
        after: dict[str, float] = {}
        for name, (limit, full_ms, cost) in asked.items():
            after[name] = max(full_ms, now_ms) + (cost * MINUTE_MS / limit if limit else 0.0)
            if limit and cost > limit:
                wait[name] = math.inf
            elif limit and after[name] - now_ms > MINUTE_MS + 1e-3:
                wait[name] = after[name] - now_ms - MINUTE_MS
        refused: LimitName | None = None
        if quota.concurrent_responses and in_flight >= quota.concurrent_responses:
            refused, wait_ms = "concurrent", 0.0
        elif wait:
            refused = "tokens" if wait.get("tokens", -1) >= wait.get("requests", -1) else "requests"
            wait_ms = wait[refused]
        else:
            wait_ms = 0.0
            full.requests_ms, full.tokens_ms = after["requests"], after["tokens"]
        return Ruling(
            lane,
            refused,
            wait_ms,
            room_of(quota.requests_per_minute, full.requests_ms, now_ms),
            room_of(quota.tokens_per_minute, full.tokens_ms, now_ms),
        )

    def correct(self, tenant: TenantId, quota: Quota, *, tokens: int, requests: int) -> None:
        """So many more were used than charged; negative: fewer."""
        full = self._full.get(tenant)
        if full is None:
            return
        if quota.tokens_per_minute:
            full.tokens_ms += tokens * MINUTE_MS / quota.tokens_per_minute
        if quota.requests_per_minute:
            full.requests_ms += requests * MINUTE_MS / quota.requests_per_minute

    def _of(self, tenant: TenantId) -> _Full:
        full = self._full.setdefault(tenant, _Full())
        self._full.move_to_end(tenant)
        if len(self._full) > MAX_TENANTS:
            self._full.popitem(last=False)
        return full
