"""What tenants have used, in Redis, so that all gateways count as one: requests and tokens per minute,
responses in flight, and who is above its share of a model.

One script decides and charges at once; all keys share a hash tag. A response in flight is a lease that its
gateway renews, so that what a dead gateway held comes back. Without Redis each gateway counts for itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from gateway.rate import LimitName, LocalRates, Ruling, lane_of, room_of
from gateway.redis_health import RedisHealth
from schemas.config import Limits
from schemas.ids import ModelToken, ResponseId, TenantId
from schemas.job import Lane
from schemas.quota import Quota

log = logging.getLogger(__name__)

CHUNK = 500  # leases of one command
LAST_WORDS_S = 1.0  # at the end, for giving all leases back

# Each script works for several responses in turn, told in one argument of MessagePack: as arguments of their
# own, redis-py takes 3 us for each. KEYS: what all keys begin with, for they share a slot: requests' and
# tokens' fill times, the tenant's leases, those on this model, the model's tenants. Times are milliseconds of
# the server's clock, the only one that all gateways share.
_COMMON = """
local t = redis.call('TIME') local now = t[1] * 1000 + t[2] / 1000
local function keys(tenant, model)
  local all = KEYS[1]
  return {all .. ':requests:' .. tenant, all .. ':tokens:' .. tenant, all .. ':leases:' .. tenant,
    all .. ':leases:' .. tenant .. ':' .. model, all .. ':tenants:' .. model}
end
local function fill(key) return math.max(tonumber(redis.call('GET', key) or '0'), now) end
local function put(key, at)
  if at > now then redis.call('SET', key, string.format('%.3f', at), 'PX', math.ceil(at - now))
  else redis.call('DEL', key) end
end
"""
# ARGV: least share, lease ms, and of each response: itself, tenant, model, requests/min, tokens/min,
# concurrent, tokens asked, slots. Asked again (a request repeated under its idempotency key, a command whose
# answer was lost) it charges once.
_TAKE = (
    _COMMON
    + """
local function take(id, tenant, model, rpm, tpm, most, cost, slots)
  local key = keys(tenant, model)
  for k = 3, 5 do redis.call('ZREMRANGEBYSCORE', key[k], '-inf', now) end
  local req, tok = fill(key[1]), fill(key[2])
  local again = redis.call('ZSCORE', key[4], id)
  local refused, wait = 0, 0
  if not again then
    local req2, tok2 = req, tok
    if rpm > 0 then req2 = req + 60000 / rpm end
    if tpm > 0 then tok2 = tok + cost * 60000 / tpm end
    local req_wait, tok_wait = req2 - now - 60000, tok2 - now - 60000
    if most > 0 and redis.call('ZCARD', key[3]) >= most then refused = 3
    elseif tpm > 0 and cost > tpm then refused, wait = 2, -1
    elseif tpm > 0 and tok_wait > 1e-3 and (rpm == 0 or tok_wait >= req_wait) then refused, wait = 2, tok_wait
    elseif rpm > 0 and req_wait > 1e-3 then refused, wait = 1, req_wait
    else
      req, tok = req2, tok2
      put(key[1], req) put(key[2], tok)
    end
  end
  local over = 0
  if refused == 0 then
    local mine = redis.call('ZCARD', key[4])
    if again then mine = mine - 1 end
    local lease = tonumber(ARGV[2])
    redis.call('ZADD', key[3], now + lease, id)
    redis.call('ZADD', key[4], now + lease, id)
    redis.call('ZADD', key[5], now + lease, tenant)
    for k = 3, 5 do redis.call('PEXPIRE', key[k], lease) end
    local share = math.max(tonumber(ARGV[1]), math.floor(slots / redis.call('ZCARD', key[5])))
    if mine >= share then over = 1 end
  end
  return {refused, tostring(wait), over, tostring(req - now), tostring(tok - now), again and 1 or 0}
end
local said = {}
for i, asked in ipairs(cmsgpack.unpack(ARGV[3])) do said[i] = take(unpack(asked)) end
return said
"""
)
# ARGV, of each response: itself, tenant, model, requests/min, tokens/min, requests and tokens used beyond
# what was charged. Once: only who holds the lease is corrected.
_GIVE_BACK = (
    _COMMON
    + """
local function give_back(id, tenant, model, rpm, tpm, requests, tokens)
  local key = keys(tenant, model)
  redis.call('ZREM', key[3], id)
  if redis.call('ZREM', key[4], id) == 1 then
    if rpm > 0 then put(key[1], fill(key[1]) + requests * 60000 / rpm) end
    if tpm > 0 then put(key[2], fill(key[2]) + tokens * 60000 / tpm) end
  end
  if redis.call('ZCARD', key[4]) == 0 then redis.call('ZREM', key[5], tenant) end
end
for _, given in ipairs(cmsgpack.unpack(ARGV[1])) do give_back(unpack(given)) end
"""
)
# ARGV: lease ms, tenant, model, the responses.
_RENEW = (
    _COMMON
    + """
local lease, key = tonumber(ARGV[1]), keys(ARGV[2], ARGV[3])
for _, id in ipairs(cmsgpack.unpack(ARGV[4])) do
  redis.call('ZADD', key[3], now + lease, id)
  redis.call('ZADD', key[4], now + lease, id)
end
redis.call('ZADD', key[5], now + lease, ARGV[2])
for k = 3, 5 do redis.call('PEXPIRE', key[k], lease) end
"""
)
_KEYS = ("hr:{limits}",)
_encoder = msgspec.msgpack.Encoder()
_REFUSED: tuple[LimitName | None, ...] = (None, "requests", "tokens", "concurrent")
_LANES: tuple[Lane, Lane] = ("fair", "over")


@dataclass(frozen=True, slots=True)
class Claim:
    """One response's use: ``tokens`` are charged at once, ``slots`` are the model's."""

    response: ResponseId
    tenant: TenantId
    model: ModelToken
    quota: Quota
    tokens: int
    slots: int


@dataclass(frozen=True, slots=True)
class _Return:
    claim: Claim
    requests: int
    tokens: int


_Asked = tuple[Claim, "asyncio.Future[Ruling]"]
_ENDING = RedisConnectionError("this gateway is ending")


class TenantLimits:
    """``run`` asks Redis, renews the leases and gives them back; without it each tenant counts here alone."""

    def __init__(self, redis: Redis, health: RedisHealth, config: Limits) -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)
        self._give_back = redis.register_script(_GIVE_BACK)
        self._asked: list[_Asked] = []  # in this pass of the event loop
        self._tasks: asyncio.TaskGroup | None = None
        self._min_share = config.min_share
        self._lease_s = config.lease_s
        self.health = health
        self._rates = LocalRates()
        self._held: dict[ResponseId, Claim] = {}
        self._by_tenant: Counter[TenantId] = Counter()
        self._by_model: defaultdict[ModelToken, Counter[TenantId]] = defaultdict(Counter)
        self._returns: dict[ResponseId, _Return] = {}  # as many as end within one command to Redis
        self._news = asyncio.Event()

    async def take(self, claim: Claim) -> Ruling:
        """Charge and hold it, unless the ruling says otherwise. What is held must be given back. What
        somebody holds already stays theirs: the same response was asked for before, and cost then."""
        if claim.response in self._held:
            return Ruling(repeats=True)
        ruling = None
        if self.health.may_ask():
            try:
                ruling = await self._ask(claim)
                self.health.answered()
            except RedisError as error:
                self.health.failed(error)
                self._return(_Return(claim, -1, -claim.tokens))  # it may have been taken
            except asyncio.CancelledError:
                self._return(_Return(claim, -1, -claim.tokens))
                raise
        ruling = ruling or self._ask_here(claim)
        if ruling.refused is None and not ruling.repeats:
            self._hold(claim)
        return ruling

    def give_back(self, claim: Claim, *, requests: int = 0, tokens: int = 0) -> None:
        """It is over, once. ``requests``, ``tokens``: used beyond what was charged; negative: less."""
        if self._held.get(claim.response) is not claim:
            return
        del self._held[claim.response]
        _less(self._by_tenant, claim.tenant)
        on_model = self._by_model[claim.model]
        _less(on_model, claim.tenant)
        if not on_model:
            del self._by_model[claim.model]
        if self.health.is_away:  # it was counted here, or will be
            self._rates.correct(claim.tenant, claim.quota, tokens=tokens, requests=requests)
        self._return(_Return(claim, requests, tokens))

    async def run(self) -> None:
        """Until cancelled; then it gives all leases back: what goes on in the queue is nobody's here."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._keep()
        finally:
            self._tasks = None
            for claim in list(self._held.values()):
                self.give_back(claim)
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._settle()

    async def _keep(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        renew_s = self._lease_s / 3
        renew_at = loop.time() + renew_s
        # a command to Redis may swallow the cancellation: asyncio.wait_for does, before Python 3.12
        while not task.cancelling():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(renew_at):
                    await self._news.wait()
            self._news.clear()
            await self._settle()
            if loop.time() >= renew_at:
                renew_at = loop.time() + renew_s
                await self._renew()

    # -- here ---------------------------------------------------------------------------------------

    def _ask_here(self, claim: Claim) -> Ruling:
        tenants = self._by_model[claim.model].keys() | {claim.tenant}
        mine = self._by_model[claim.model][claim.tenant]
        return self._rates.ask(
            claim.tenant,
            claim.quota,
            tokens=claim.tokens,
            in_flight=self._by_tenant[claim.tenant],
            lane=lane_of(mine, claim.slots, len(tenants), self._min_share),
            now_ms=time.monotonic() * 1000,
        )

    def _hold(self, claim: Claim) -> None:
        self._returns.pop(claim.response, None)
        self._held[claim.response] = claim
        self._by_tenant[claim.tenant] += 1
        self._by_model[claim.model][claim.tenant] += 1

    def _return(self, given: _Return) -> None:
        self._returns[given.claim.response] = given
        self._news.set()

    # -- Redis --------------------------------------------------------------------------------------

    async def _ask(self, claim: Claim) -> Ruling:
        """What is asked in one pass of the event loop is one command: of a burst, each would cost as much as
        all that its request does here besides."""
        answer: asyncio.Future[Ruling] = asyncio.get_running_loop().create_future()
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._send)
        self._asked.append((claim, answer))
        return await answer

    def _send(self) -> None:
        asked, self._asked = [one for one in self._asked if not one[1].done()], []
        work = self._ask_all(asked)
        try:
            if self._tasks is None:
                raise RuntimeError("not running")
            task = self._tasks.create_task(work, name="take-limits")
        except RuntimeError:  # what a task group says when it is shutting down
            work.close()
            _fail(asked, _ENDING)
        else:
            task.add_done_callback(lambda _: _fail(asked, _ENDING))  # it may be cancelled before it begins

    async def _ask_all(self, asked: Sequence[_Asked]) -> None:
        told = _encoder.encode(
            [
                (*_whose(claim), claim.quota.concurrent_responses, claim.tokens, claim.slots)
                for claim, _ in asked
            ]
        )
        try:
            said = await self._take(_KEYS, (self._min_share, int(self._lease_s * 1000), told))
            for (claim, answer), one in zip(asked, said, strict=True):
                if not answer.done():  # else its request was given up
                    answer.set_result(_ruling(claim.quota, one))
        except RedisError as error:
            _fail(asked, error)

    async def _settle(self) -> None:
        """Without Redis nothing: leases that nobody renews come back by themselves."""
        returns, self._returns = self._returns, {}
        if not returns or not self.health.may_ask():
            return
        try:
            told = [(*_whose(given.claim), given.requests, given.tokens) for given in returns.values()]
            for start in range(0, len(told), CHUNK):
                await self._give_back(_KEYS, (_encoder.encode(told[start : start + CHUNK]),))
            self.health.answered()
        except RedisError as error:
            self.health.failed(error)

    async def _renew(self) -> None:
        if not self._held or not self.health.may_ask():
            return
        held: defaultdict[tuple[TenantId, ModelToken], list[Claim]] = defaultdict(list)
        for claim in self._held.values():
            held[claim.tenant, claim.model].append(claim)
        pipe = self._redis.pipeline(transaction=False)
        for claims in held.values():
            for start in range(0, len(claims), CHUNK):
                some = claims[start : start + CHUNK]
                told = _encoder.encode([claim.response for claim in some])
                whose = (some[0].tenant, some[0].model)
                pipe.eval(_RENEW, 1, *_KEYS, str(int(self._lease_s * 1000)), *whose, told)
        try:
            await pipe.execute()
            self.health.answered()
        except RedisError as error:
            self.health.failed(error)


def _ruling(quota: Quota, said: tuple[int, bytes, int, bytes, bytes, int]) -> Ruling:
    refused, wait, over, requests, tokens, again = said
    wait_ms = float(wait)
    return Ruling(
        _LANES[over],
        _REFUSED[refused],
        math.inf if wait_ms < 0 else wait_ms,
        room_of(quota.requests_per_minute, float(requests), 0.0),
        room_of(quota.tokens_per_minute, float(tokens), 0.0),
        repeats=bool(again),
    )


def _fail(asked: Sequence[_Asked], error: RedisError) -> None:
    for _, answer in asked:
        if not answer.done():
            answer.set_exception(error)


def _whose(claim: Claim) -> tuple[str, str, str, int, int]:
    quota = claim.quota
    return claim.response, claim.tenant, claim.model, quota.requests_per_minute, quota.tokens_per_minute


def _less(counter: Counter[TenantId], tenant: TenantId) -> None:
    counter[tenant] -= 1
    if counter[tenant] <= 0:
        del counter[tenant]
