"""Answers to identical requests in Redis, and who generates the answer to those that are in flight.

Three kinds of key a tenant, of one hash tag: an answer, the leader of those who ask for it now, and the
index by which the tenant's answers are kept within their size. Every change is one script that may run
twice. Redis is a cache: without it, everything is generated. Must not know reply logs.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker import metrics
from gateway.cache_key import cache_key, tenant_tag
from gateway.redis_health import RedisHealth
from schemas.config import Cache
from schemas.ids import ResponseId
from schemas.job import Job
from schemas.reply import FinishReason

log = logging.getLogger(__name__)

CLAIM_S = 2.0  # a leader whose job is not stored by then is none
AFTER_DEADLINE_S = 5.0

# KEYS: answer, leader. ARGV: response, claim ms. A leader whose job is not stored yet stands behind a "?".
_LOOK = """
local answer = redis.call('GET', KEYS[1])
if answer then return {1, answer} end
local leader = redis.call('GET', KEYS[2])
if leader and leader ~= '?' .. ARGV[1] then return {2, leader} end
if ARGV[2] ~= '0' then redis.call('SET', KEYS[2], '?' .. ARGV[1], 'PX', ARGV[2]) end
return {0, ''}
"""
# KEYS: leader. ARGV: response, ms until its deadline is past.
_CONFIRM = """
if redis.call('GET', KEYS[1]) == '?' .. ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
"""
# KEYS: leader. ARGV: response.
_RELEASE = """
local leader = redis.call('GET', KEYS[1])
if leader == ARGV[1] or leader == '?' .. ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
# KEYS: leader, heir of the one that ended badly. ARGV: that one, response, ms until its deadline is past.
_INHERIT = """
local heir = redis.call('GET', KEYS[2])
if heir then return heir end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
local leader = redis.call('GET', KEYS[1])
if not leader or leader == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return ARGV[2]
"""
# KEYS: answer, index, total. ARGV: answer, ttl ms, now ms, size, most of all sizes, prefix of answers, id.
# The index orders "id:size" by when the answer goes; what has gone by itself is taken off first.
_STORE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local function drop(member)
  redis.call('ZREM', KEYS[2], member)
  redis.call('DECRBY', KEYS[3], tonumber(string.match(member, ':(%d+)$')))
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[3])) do drop(member) end
local total = redis.call('INCRBY', KEYS[3], ARGV[4])
while total > tonumber(ARGV[5]) do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then break end
  redis.call('DEL', ARGV[6] .. string.match(oldest, '^(%x+):'))
  drop(oldest)
  total = tonumber(redis.call('GET', KEYS[3]))
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], tonumber(ARGV[3]) + tonumber(ARGV[2]), ARGV[7] .. ':' .. ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return 1
"""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """A completion as it ended: its tokens, up to and with the one that completed a stop string."""

    ids: tuple[int, ...]
    finish: FinishReason


@dataclass(frozen=True, slots=True)
class Claimed:
    """No answer is known, and none is being made: this response makes it."""


@dataclass(frozen=True, slots=True)
class Led:
    """Another response makes it. ``confirmed``: its job is stored."""

    leader: ResponseId
    confirmed: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Answer)


class ResponseCache:
    def __init__(self, redis: Redis, health: RedisHealth, config: Cache, secret: bytes) -> None:
        self._redis = redis
        self._config = config
        self._secret = secret
        self._health = health

    def name_of(self, job: Job) -> str:
        """Of the requests that share one generation. A leader of another class would wait for longer than its
        followers need to. The lane does not matter: where its thousandth request is above its share, a tenant
        has the first one's answer."""
        return f"{cache_key(self._secret, job)}:{job.priority}"

    async def look(self, job: Job) -> Answer | Claimed | Led | None:
        """None: Redis is away."""
        if not self._health.may_ask():
            return None
        claim_ms = int(CLAIM_S * 1000) if self._config.join else 0
        try:
            kind, value = await self._redis.eval(
                _LOOK, 2, self._answer_key(job), self._leader_key(job), job.response, claim_ms
            )
            self._health.answered()
        except RedisError as error:
            self._health.failed(error)
            return None
        if kind == 0:
            return Claimed()
        if kind == 1:
            return self._decode(value)
        leader = value.decode()
        return Led(ResponseId(leader.removeprefix("?")), not leader.startswith("?"))

    async def confirm(self, job: Job) -> None:
        """The job of the response that claimed is stored."""
        await self._try(_CONFIRM, [self._leader_key(job)], job.response, _left_ms(job))

    async def release(self, job: Job, leader: ResponseId | None = None) -> None:
        """The response (``leader``: that one) makes no answer for others any more."""
        await self._try(_RELEASE, [self._leader_key(job)], leader or job.response)

    async def inherit(self, job: Job, leader: ResponseId) -> ResponseId | None:
        """Which one of those that followed a leader that ended badly goes on for all of them. None: Redis is
        away."""
        heir_key = f"{self._leader_key(job)}:heir:{leader}"
        arguments = (leader, job.response, _left_ms(job))
        found = await self._try(_INHERIT, [self._leader_key(job), heir_key], *arguments)
        return ResponseId(found.decode()) if isinstance(found, bytes) else None

    async def store(self, job: Job, answer: Answer) -> None:
        """Unless it is there, or takes more than its share."""
        data = _encoder.encode(answer)
        config = self._config
        if len(data) <= config.max_entry_bytes:
            key, prefix = self._answer_key(job), self._prefix(job)
            ttl_ms, now_ms = int(config.ttl_s * 1000), int(time.time() * 1000)
            keys = [key, f"{prefix}index", f"{prefix}total"]
            bounds = (ttl_ms, now_ms, len(data), config.max_tenant_bytes)
            stored = await self._try(_STORE, keys, data, *bounds, prefix, key.removeprefix(prefix))
            if stored:
                metrics.CACHE_STORES.inc()
                metrics.CACHE_STORED_BYTES.inc(len(data))
        await self.release(job)

    # -- Redis --------------------------------------------------------------------------------------

    async def _try(self, script: str, keys: list[str], *arguments: object) -> object:
        """None where Redis is away."""
        if not self._health.may_ask():
            return None
        try:
            done: object = await self._redis.eval(script, len(keys), *keys, *arguments)  # type: ignore[arg-type]
            self._health.answered()
        except RedisError as error:
            self._health.failed(error)
            return None
        return done

    def _prefix(self, job: Job) -> str:
        """Braces: all keys of a tenant live on one node of a Redis cluster."""
        return f"hr:cache:{{{tenant_tag(self._secret, job)}}}:"

    def _answer_key(self, job: Job) -> str:
        return self._prefix(job) + cache_key(self._secret, job)

    def _leader_key(self, job: Job) -> str:
        return f"{self._prefix(job)}leader:{self.name_of(job)}"

    def _decode(self, data: bytes) -> Answer | None:
        try:
            return _decoder.decode(data)
        except msgspec.DecodeError as error:
            log.error("a stored answer does not decode: %s", error)
            return None


def _left_ms(job: Job) -> int:
    return max(1, int(job.deadline_unix_ms - time.time() * 1000 + AFTER_DEADLINE_S * 1000))
