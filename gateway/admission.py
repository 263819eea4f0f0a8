"""Whether a request may begin: its tenant's limits, room in the model's queue and in the broker's streams,
and time enough before its deadline; and in which lane it waits. Must not know prompts, logs or any API.
"""

from __future__ import annotations

import math

from redis.asyncio import Redis

from broker import metrics
from broker.connection import Broker
from broker.labelled import labelled
from gateway.catalog import Catalog, ModelCard
from gateway.generation import Generation, Queued
from gateway.limits import Claim, TenantLimits
from gateway.live import Live
from gateway.queue_watch import QueueWatch
from gateway.rate import MINUTE_MS, Ruling
from gateway.redis_health import RedisHealth
from gateway.retention_watch import RetentionWatch
from schemas.config import Gateway, Limits
from schemas.errors import HeadraceError
from schemas.ids import ResponseId
from schemas.job import Lane, Priority
from schemas.quota import Quota

CHARACTERS_PER_TOKEN = 4  # of a prompt that is not encoded yet; the end corrects it
MAX_RETRY_S = 60
LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
)


class Admission:
    """``tenants``, ``queues`` and ``retention`` must run for anything to be given back or seen."""

    def __init__(
        self,
        limits: Limits,
        gateway: Gateway,
        redis: Redis,
        health: RedisHealth,
        broker: Broker,
        catalog: Catalog,
    ) -> None:
        self.tenants = TenantLimits(redis, health, limits)
        self.queues = QueueWatch(broker, catalog.models)
        self.retention = RetentionWatch(broker, gateway.deadline_s)
        self._configured = Quota(
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            concurrent_responses=limits.concurrent_responses,
        )
        self._max_queued: dict[Priority, int] = {
            "interactive": limits.max_queued_interactive,
            "standard": limits.max_queued_standard,
            "batch": limits.max_queued_batch,
        }
        self._max_deadline_s = gateway.deadline_s

    async def admit(self, generation: Generation, card: ModelCard, response: ResponseId) -> Ticket:
        """Raises ``HeadraceError``: storage_full, queue_full, deadline_unreachable, rate_limit_exceeded. What
        it returns must be settled or withdrawn."""
        self.retention.check()
        self._check_room(generation, card)
        self._check_time(generation, card, "fair")
        claim = Claim(
            response=response,
            tenant=generation.tenant,
            model=card.token,
            quota=generation.quota.over(self._configured),
            tokens=_tokens_of(generation),
            slots=card.slots,
        )
        ruling = await self.tenants.take(claim)
        if ruling.refused is not None:
            metrics.REFUSALS.labels(limit=ruling.refused).inc()
            raise _refusal(ruling, claim)
        ticket = Ticket(self, claim, ruling)
        if ruling.lane == "over":
            try:
                self._check_time(generation, card, "over")
            except HeadraceError:
                ticket.withdraw()
                raise
        ticket.first = self.queues.wait_of_next(card, generation.priority, ruling.lane)
        labelled(metrics.ADMITTED, card.name, ruling.lane).inc()
        return ticket

    def _check_room(self, generation: Generation, card: ModelCard) -> None:
        most = self._max_queued[generation.priority]
        if self.queues.depth(card.token, generation.priority) < most:
            return
        wait = self.queues.wait_of_next(card, generation.priority, "over")
        metrics.REFUSALS.labels(limit="queue").inc()
        raise HeadraceError(
            "queue_full",
            f"{most} {generation.priority} requests wait for this model, as many as may: try again later, or "
            "take another model or service_tier.",
            retry_after_s=_retry_s((wait.eta_ms or 0) / most),  # until a place is free
        )

    def _check_time(self, generation: Generation, card: ModelCard, lane: Lane) -> None:
        deadline_s = min(generation.deadline_s or self._max_deadline_s, self._max_deadline_s)
        wait = self.queues.wait_of_next(card, generation.priority, lane)
        if wait.eta_ms is None or wait.eta_ms <= deadline_s * 1000:
            return
        metrics.REFUSALS.labels(limit="deadline").inc()
        raise HeadraceError(
            "deadline_unreachable",
            f"{wait.position - 1} requests are before this one, about {wait.eta_ms / 1000:.0f} s, and its "
            f"time is {deadline_s:g} s: try again later, or take another model or service_tier.",
            retry_after_s=_retry_s(wait.eta_ms - deadline_s * 1000),
        )


class Ticket:
    """The right of one response to run, and its place among those that wait. ``first``: where it would wait
    when it was admitted. Ended by ``settle`` or ``withdraw``; what comes later is ignored."""

    def __init__(self, admission: Admission, claim: Claim, ruling: Ruling) -> None:
        self.lane = ruling.lane
        self.ruling = ruling
        self.first = Queued()
        self._admission = admission
        self._claim = claim

    def begin(self, live: Live, *, waits: bool) -> None:
        """Before its job is published: a reader may come with the ack. ``waits``: for a slot, as what has
        another's answer does not."""
        live.queued = self.first if waits else Queued()
        live.allowance = self.ruling

    def stored(self, live: Live, seq: int) -> None:
        """Its job is stored at ``seq`` of the queue."""
        self._admission.queues.entered(live, seq)

    def started(self, live: Live) -> None:
        self._admission.queues.started(live.job)

    def settle(self, live: Live) -> None:
        """The response has ended: it cost what it used."""
        end = live.end
        assert end is not None
        self._admission.queues.ended(live.job, _service_s(live))
        generated = live.log.fence is not None or live.job.presentation.cache not in ("hit", "joined")
        used = end.usage.prompt_tokens + end.usage.completion_tokens if generated else 0
        self._admission.tenants.give_back(self._claim, tokens=used - self._claim.tokens)

    def withdraw(self) -> None:
        """It was not accepted after all: it cost nothing."""
        self._admission.tenants.give_back(self._claim, requests=-1, tokens=-self._claim.tokens)


def _service_s(live: Live) -> float | None:
    """How long it held a slot; None where that tells nothing of others."""
    if live.started_unix_ms is None or live.finished_unix_ms is None or live.end is None:
        return None
    if live.end.outcome not in ("completed", "incomplete"):
        return None
    return max(0.0, live.finished_unix_ms - live.started_unix_ms) / 1000


def _tokens_of(generation: Generation) -> int:
    characters = sum(len(message.content) for message in generation.messages)
    return -(-characters // CHARACTERS_PER_TOKEN) + generation.sampling.max_tokens


def _refusal(ruling: Ruling, claim: Claim) -> HeadraceError:
    quota = claim.quota
    headers = limit_headers(ruling)
    retry_after_s: int | None = _retry_s(ruling.wait_ms)
    asks = (
        f"tokens per minute: this asks for {claim.tokens}, about (its prompt and the most it may answer), and"
    )
    if ruling.refused == "concurrent":
        most = quota.concurrent_responses
        message = f"concurrent responses: you have {most} running, as many as you may: wait for one to end."
    elif ruling.refused == "requests":
        message = f"requests per minute: you may send {quota.requests_per_minute}: send fewer, or wait."
    elif math.isinf(ruling.wait_ms):
        message = f"{asks} you may use {quota.tokens_per_minute}: ask for fewer tokens or shorten the input."
        retry_after_s = None
    else:
        left = ruling.tokens.remaining if ruling.tokens else 0
        message = f"{asks} {left} of {quota.tokens_per_minute} are left: ask for fewer tokens, or wait."
    return HeadraceError("rate_limit_exceeded", message, retry_after_s=retry_after_s, headers=headers)


def limit_headers(ruling: Ruling | None) -> dict[str, str]:
    """OpenAI's, of the limits that there are (platform.openai.com/docs/guides/rate-limits)."""
    headers: dict[str, str] = {}
    if ruling is None:
        return headers
    for name, room in (("requests", ruling.requests), ("tokens", ruling.tokens)):
        if room is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(room.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(room.remaining)
            headers[f"x-ratelimit-reset-{name}"] = duration(room.reset_ms)
    return headers


def duration(ms: float) -> str:
    """As Go writes it, and OpenAI with it: ``17ms``, ``1.2s``, ``6m0s``."""
    if ms < 1000:
        return f"{math.ceil(ms)}ms"
    minutes, seconds = divmod(ms / 1000, MINUTE_MS / 1000)
    return f"{int(minutes)}m{seconds:.3g}s" if minutes else f"{seconds:.3g}s"


def _retry_s(ms: float) -> int:
    return max(1, math.ceil(min(MAX_RETRY_S, ms / 1000)))
