"""Conversations in Redis: who may add a turn, what was said, and the folding in of turns that ended.

Two keys a conversation: its context, and the response whose turn is in flight (the claim). A response that
is stored has its context under its own id, for ``previous_response_id``. Redis is a cache: without it chat
goes on with no memory. Where a gateway died with a turn in flight, the next turn folds it in from the job
and its reply log. Must not know prompts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker.connection import Broker
from broker.jobs import find_job
from broker.log_reader import LogReader
from broker.replylog import ReplyLog
from broker.topology import MAX_DEADLINE_S
from gateway.context import Context, fold, fold_found, read_verdict
from gateway.generation import Generation
from gateway.redis_health import RedisHealth
from gateway.tokenizer import ChatTokenizer
from schemas.errors import HeadraceError
from schemas.ids import ResponseId, TenantId, session_token
from schemas.job import Job, Memory
from schemas.reply import Closed

log = logging.getLogger(__name__)

UNPUBLISHED_S = 10.0  # a claim so young may belong to a job that is about to be stored
SHORT = 200  # tokens of an answer, read again in 0.1 ms; a thread costs as much (``prompt.is_short``)
OVERDUE_S = 5.0  # past its deadline by so much, a response that nobody ended is ended by who reads it

# KEYS: context, claim. ARGV: holder, new context or "", context TTL s, new holder or "", claim TTL s.
_FOLD = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3]) end
if ARGV[4] ~= '' then redis.call('SET', KEYS[2], ARGV[4], 'EX', ARGV[5]) else redis.call('DEL', KEYS[2]) end
return 1
"""

_CLIENTS = "conversation:"  # before the names that clients give
_decoder = msgspec.msgpack.Decoder(Context)
_encoder = msgspec.msgpack.Encoder()

TokenizerOf = Callable[[Job], Awaitable[ChatTokenizer]]


@dataclass(frozen=True, slots=True)
class Opened:
    """What a new turn continues. ``claimed``: the conversation whose claim this turn holds for sure;
    ``is_new``: nobody had it for this response before."""

    response: ResponseId
    tenant: TenantId
    context: Context
    memory: Memory
    claimed: str | None = None
    is_new: bool = False


class Conversations:
    """``is_live``: whether a response is in flight on this gateway. ``settle``: sees to it that a held job's
    response ends."""

    def __init__(
        self,
        redis: Redis,
        health: RedisHealth,
        broker: Broker,
        secret: bytes,
        *,
        rounds: int,
        ttl_s: float,
        tokenizer_of: TokenizerOf,
        is_live: Callable[[ResponseId], bool],
        settle: Callable[[Job], Awaitable[None]],
    ) -> None:
        self._redis = redis
        self._broker = broker
        self._secret = secret
        self._rounds = rounds
        self._ttl_s = max(1, int(ttl_s))
        self._tokenizer_of = tokenizer_of
        self._is_live = is_live
        self._settle_held = settle
        self._health = health
        self._folding: dict[ResponseId, asyncio.Event] = {}  # set when the turn is in Redis (or is lost)

    async def open(self, generation: Generation, response: ResponseId) -> Opened:
        """Raises ``HeadraceError``: conversation_busy, previous_response_not_found, context_unavailable,
        broker_unavailable. What was opened must be closed or abandoned; abandoned also where this raises,
        a cancellation included: the claim may have been set."""
        tenant = generation.tenant
        if generation.previous_response_id is not None:
            context = await self._previous(tenant, generation.previous_response_id)
            return Opened(response, tenant, _in_session(context, response), "on")
        name = _name_of(generation)
        if name is None:
            return Opened(response, tenant, Context(session=response), "none")
        empty = Context(session=name)
        if not self._health.may_ask():
            return Opened(response, tenant, empty, "unavailable")
        try:
            if not generation.store:
                return Opened(response, tenant, await self._get(self._key(tenant, name)) or empty, "on")
            found, is_new = await self._claim(tenant, name, response)
        except RedisError as error:
            # If the claim was set all the same, the next turn settles it: it folds this one in from its log.
            self._health.failed(error)
            return Opened(response, tenant, empty, "unavailable")
        return Opened(response, tenant, found or empty, "on", claimed=name, is_new=is_new)

    def will_close(self, opened: Opened, job: Job) -> bool:
        """The response has ended. True: ``close`` comes next, and a following turn waits for it; False: there
        is nothing to remember, nor to give back."""
        if opened.claimed is None and not _is_stored(job):
            return False
        self._folding[job.response] = asyncio.Event()
        return True

    async def close(self, opened: Opened, job: Job, ended: LogReader, tokenizer: ChatTokenizer) -> None:
        """Remember the turn, and give back the claim. Without Redis the turn is lost."""
        by_id = _is_stored(job)
        try:
            detokenizer = tokenizer.detokenizer_of(job.presentation.shape)
            folding = partial(fold, opened.context, job, ended, detokenizer, rounds=self._rounds)
            folded = folding() if len(ended.ids) <= SHORT else await asyncio.to_thread(folding)
            if opened.claimed is not None:
                await self._fold(self._key(opened.tenant, opened.claimed), opened.response, folded, "")
            if by_id and folded is not None:
                key = self._key_of_response(opened.tenant, opened.response)
                await self._redis.set(key, _encoder.encode(folded), ex=self._ttl_s, nx=True)  # not if erased
            self._health.answered()
        except RedisError as error:
            self._health.failed(error)
        finally:
            done = self._folding.pop(opened.response, None)
            if done is not None:
                done.set()

    async def abandon(self, generation: Generation, response: ResponseId) -> None:
        """The turn never became a response: give back its claim, if it has one. Without Redis the claim
        counts for ``UNPUBLISHED_S``, as there is no job."""
        name = _name_of(generation)
        if name is None or not generation.store:
            return
        try:
            await self._fold(self._key(generation.tenant, name), response, None, "")
        except RedisError as error:
            self._health.failed(error)

    # -- at the client's wish -----------------------------------------------------------------------

    async def recall(self, tenant: TenantId, name: str) -> Context | None:
        """What is remembered under the name that clients give. Raises ``context_unavailable``."""
        with self._or_unavailable():
            return _decode(cast("bytes | None", await self._redis.get(self._key(tenant, _CLIENTS + name))))

    async def forget(self, tenant: TenantId, name: str) -> bool:
        """A turn that is in flight goes on and will not be remembered. False: there was nothing. Raises
        ``HeadraceError(context_unavailable)``."""
        key = self._key(tenant, _CLIENTS + name)
        with self._or_unavailable():
            return bool(await self._redis.delete(key, _claim_key(key)))

    async def forget_response(self, tenant: TenantId, response: ResponseId) -> None:
        """Nothing can continue it any more, though its gateway may be about to store its context. Raises
        ``HeadraceError(context_unavailable)``."""
        with self._or_unavailable():
            await self._redis.set(self._key_of_response(tenant, response), b"", ex=self._claim_ttl_s)

    @contextmanager
    def _or_unavailable(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            self._health.failed(error)
            raise HeadraceError(
                "context_unavailable", "What is remembered cannot be reached right now: try again."
            ) from error
        self._health.answered()

    # -- by name ------------------------------------------------------------------------------------

    async def _claim(self, tenant: TenantId, name: str, response: ResponseId) -> tuple[Context | None, bool]:
        """Become the conversation's turn in flight; True: it was not before. Raises conversation_busy,
        ``RedisError``.

        The context is read with the claim, in one transaction: what is read is what the claim protects. The
        client may send a command twice, so the holder that is found may be this response itself."""
        key = self._key(tenant, name)
        for _ in range(3):
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(_claim_key(key), response, nx=True, get=True, ex=self._claim_ttl_s)
                pipe.getex(key, ex=self._ttl_s)
                holder, stored = await pipe.execute()
            self._health.answered()
            context = _decode(stored)
            if holder is None:
                return context, True
            if holder.decode() == response:  # set by an earlier try, perhaps a while ago
                await self._redis.expire(_claim_key(key), self._claim_ttl_s)
                return context, False
            other = ResponseId(holder.decode())
            if (folding := self._folding.get(other)) is not None:
                await folding.wait()
                continue
            settled = await self._settle(tenant, key, other, context or Context(session=name))
            if await self._fold(key, other, settled, response):
                return settled or context, True
        raise _busy()

    async def _settle(
        self, tenant: TenantId, key: str, response: ResponseId, context: Context
    ) -> Context | None:
        """The context with a turn that another gateway, or an earlier life of this one, left behind; None
        where that turn left nothing. Raises conversation_busy while it is in flight."""
        if self._is_live(response):
            raise _busy()
        job = await find_job(self._broker, response)
        if job is None:
            left_s = await self._redis.pttl(_claim_key(key)) / 1000
            if self._claim_ttl_s - left_s < UNPUBLISHED_S:
                raise _busy()
            return None
        if job.tenant != tenant:
            return None
        try:
            return await self._fold_from_log(job, context)
        except HeadraceError as error:
            if error.code != "model_not_found":
                raise
            log.warning("the turn of %s is dropped, its text cannot be read: %s", response, error)
            return None

    # -- by response --------------------------------------------------------------------------------

    async def _previous(self, tenant: TenantId, response: ResponseId) -> Context:
        if (folding := self._folding.get(response)) is not None:
            await folding.wait()
        if not self._health.may_ask():
            raise _no_memory()
        try:
            context = await self._get(self._key_of_response(tenant, response))
        except RedisError as error:
            self._health.failed(error)
            raise _no_memory() from error
        return context or await self._recover(tenant, response)

    async def _recover(self, tenant: TenantId, response: ResponseId) -> Context:
        """A response whose gateway died before it could store the context, or whose context was lost."""
        job = await find_job(self._broker, response)
        if job is None or job.tenant != tenant or not job.presentation.store:
            raise _unknown(response)
        if self._is_live(response):
            raise _busy()
        context = Context(session=response)
        earlier = job.presentation.previous_response_id
        try:
            if earlier is not None:  # its text is wanted where the ids cannot be used; it may be gone
                context = await self._get(self._key_of_response(tenant, ResponseId(earlier))) or context
        except RedisError as error:
            self._health.failed(error)
        folded = await self._fold_from_log(job, context)
        if folded is None:
            raise HeadraceError(
                "previous_response_not_found",
                f"The response {response} failed or said nothing: continue from the one before it.",
                param="previous_response_id",
            )
        return folded

    async def _fold_from_log(self, job: Job, context: Context) -> Context | None:
        reply_log = ReplyLog(self._broker, job.gateway, job.response, job.session)
        ended = await reply_log.read()
        if ended.end is None and job.held and ended.fence is None:
            await self._settle_held(job)
            ended = await reply_log.read()
        if ended.end is None and time.time() * 1000 > job.deadline_unix_ms + OVERDUE_S * 1000:
            await reply_log.close(Closed(reason="deadline", code="deadline_exceeded"))
            ended = await reply_log.read()
        tokenizer = await self._tokenizer_of(job)
        detokenizer = tokenizer.detokenizer_of(job.presentation.shape)
        if ended.end is None and read_verdict(job, ended, detokenizer) is None:
            raise _busy()
        return await asyncio.to_thread(fold_found, context, job, ended, detokenizer, rounds=self._rounds)

    # -- Redis --------------------------------------------------------------------------------------

    async def _get(self, key: str) -> Context | None:
        stored = await self._redis.getex(key, ex=self._ttl_s)
        self._health.answered()
        return _decode(cast("bytes | None", stored))

    async def _fold(self, key: str, holder: str, context: Context | None, next_holder: str) -> bool:
        """False: another has the claim by now, and nothing was changed."""
        data = b"" if context is None else _encoder.encode(context)
        ttl_s, claim_ttl_s = self._ttl_s, self._claim_ttl_s
        done = await self._redis.eval(
            _FOLD, 2, key, _claim_key(key), holder, data, ttl_s, next_holder, claim_ttl_s
        )
        return bool(done)

    @property
    def _claim_ttl_s(self) -> int:
        return max(self._ttl_s, MAX_DEADLINE_S) + 60

    def _key(self, tenant: TenantId, name: str) -> str:
        """Braces: both keys of a conversation live on one node of a Redis cluster."""
        return f"hr:conversation:{{{session_token(self._secret, tenant, name)}}}"

    def _key_of_response(self, tenant: TenantId, response: ResponseId) -> str:
        return f"hr:context:{session_token(self._secret, tenant, response)}"


def _is_stored(job: Job) -> bool:
    """It can be continued by its response's id."""
    return job.presentation.store and job.presentation.api == "responses"


def _name_of(generation: Generation) -> str | None:
    """The conversation's name among all of its tenant's: users of the simple chat are in a name space of
    their own, which no ``conversation`` that a client names can reach."""
    name = generation.conversation
    if name is None or generation.previous_response_id is not None:
        return None
    return f"simple:{name}" if generation.api == "simple" else _CLIENTS + name


def _claim_key(key: str) -> str:
    return f"{key}:claim"


def _decode(stored: bytes | None) -> Context | None:
    if not stored:  # none, or what an erased response left
        return None
    try:
        return _decoder.decode(stored)
    except msgspec.DecodeError as error:
        log.error("a stored conversation does not decode and is begun anew: %s", error)
        return None


def _in_session(context: Context, response: ResponseId) -> Context:
    return context if context.session else msgspec.structs.replace(context, session=response)


def _busy() -> HeadraceError:
    return HeadraceError(
        "conversation_busy",
        "The conversation's last turn is still being answered: wait for its end, or cancel it.",
    )


def _no_memory() -> HeadraceError:
    return HeadraceError(
        "context_unavailable",
        "Earlier responses cannot be read right now: try again, or send the whole conversation as input.",
        param="previous_response_id",
    )


def _unknown(response: ResponseId) -> HeadraceError:
    return HeadraceError(
        "previous_response_not_found",
        f"There is no stored response {response}: it was not stored, or its time has run out.",
        param="previous_response_id",
    )
