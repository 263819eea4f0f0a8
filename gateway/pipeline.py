"""From a checked request to an accepted response, and from the reply logs to the responses' readers.

Owns the responses that live on this gateway, their timers and their background work. Must not know HTTP,
WebSockets or any API's JSON.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine
from dataclasses import replace

import msgspec
from redis.asyncio import Redis

from broker.connection import Broker, NoAnswer
from broker.jetstream import ApiError
from broker.jobs import find_job, publish_job
from broker.presence import Roster
from broker.replylog import ReplyLog
from broker.tail import ReplyTail
from gateway import closer, meter, prompt
from gateway.catalog import Catalog, ModelCard
from gateway.context import present
from gateway.conversation import Conversations, Opened
from gateway.ended import EndedResponses
from gateway.generation import Generation
from gateway.live import Live
from gateway.meter import Meter
from gateway.tokenizer import ChatTokenizer
from gateway.vocabulary import check_token_ids
from schemas.config import Config
from schemas.errors import HeadraceError
from schemas.ids import (
    GatewayId,
    ResponseId,
    TenantId,
    cache_salt,
    new_process_id,
    new_response_id,
    session_token,
)
from schemas.job import Job, Presentation
from schemas.reply import Closed, ReplyMessage

log = logging.getLogger(__name__)


class _Entry:
    """A live response with what the pipeline keeps beside it."""

    __slots__ = ("closing", "deadline", "grace", "live", "meter", "opened", "tokenizer")

    def __init__(self, live: Live, opened: Opened, tokenizer: ChatTokenizer, counted: Meter) -> None:
        self.live = live
        self.opened = opened
        self.tokenizer = tokenizer
        self.meter = counted
        self.closing = False
        self.deadline: asyncio.TimerHandle | None = None
        self.grace: asyncio.TimerHandle | None = None

    def stop_timers(self) -> None:
        for timer in (self.deadline, self.grace):
            if timer is not None:
                timer.cancel()


class Pipeline:
    """``gateway``: this process's id in subjects. ``run`` must be running for ``submit`` to accept."""

    def __init__(self, config: Config, broker: Broker, redis: Redis) -> None:
        self.gateway = GatewayId(new_process_id("gw"))
        self._limits = config.gateway
        self._broker = broker
        self._secret = (config.security.secret or secrets.token_hex(32)).encode()
        self._roster = Roster(broker)
        self._catalog = Catalog(broker, self._roster, default_model=config.gateway.default_model)
        self._tail = ReplyTail(broker, self.gateway, on_message=self._on_message)
        self._conversations = Conversations(
            redis,
            broker,
            self._secret,
            rounds=config.gateway.conversation_rounds,
            ttl_s=config.gateway.conversation_ttl_s,
            tokenizer_of=self._tokenizer_of,
            is_live=lambda response: response in self._entries,
        )
        self._entries: dict[ResponseId, _Entry] = {}  # in flight
        self._ended = EndedResponses()
        self._submitting = 0
        self._disowned = 0  # refused jobs that may be stored: with them, too, no more than max_responses
        self._tasks: asyncio.TaskGroup | None = None
        self._background: set[asyncio.Task[None]] = set()  # a few for each response in flight or disowned
        self._draining = False
        self._quiet = asyncio.Event()  # set while nothing is in flight; looked at by drain
        self._quiet.set()

    # -- life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tail the logs and follow the roster. Never returns; raises ``BrokerClosed`` when the broker is
        gone for good."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._broker.closed(), name="broker-closed")
                tasks.create_task(self._tail.run(), name="reply-tail")
                tasks.create_task(self._roster.run(), name="roster")
                tasks.create_task(self._catalog.run(), name="catalog")
                tasks.create_task(self._ended.run(), name="ended-responses")
        finally:
            self._tasks = None
            for entry in self._entries.values():
                entry.stop_timers()
            await self._catalog.close()

    def ready(self) -> tuple[bool, str]:
        """Whether a chat would be answered now, and if not, why."""
        if self._draining:
            return False, "shutting down"
        if not self._broker.connected:
            return False, "no connection to NATS"
        if not (self._tail.ready.is_set() and self._roster.ready.is_set()):
            return False, "starting"
        models = self._catalog.models()
        if not models:
            return False, "no worker is ready"
        lacking = self._catalog.lacking()
        if len(lacking) == len(models):
            return False, f"no tokenizer yet for {', '.join(lacking)}"
        return True, f"serving {', '.join(card.name for card in models)}"

    def models(self) -> list[ModelCard]:
        return self._catalog.models()

    @property
    def quiet(self) -> bool:
        """Nothing is in flight, and what ended is remembered."""
        return self._quiet.is_set()

    async def drain(self) -> None:
        """Refuse new responses (going_away) and wait for those in flight, ``gateway.drain_s`` at most. What
        is left then goes on in the queue."""
        self._draining = True
        try:
            async with asyncio.timeout(self._limits.drain_s):
                await self._quiet.wait()
        except TimeoutError:
            log.warning("%d responses are still in flight", len(self._entries))

    # -- requests -----------------------------------------------------------------------------------

    async def submit(self, generation: Generation) -> Live:
        """Accept a response. Raises ``HeadraceError`` on refusal; once it returns, the response is stored
        and reaches one terminal update. Attach a reader within the grace time."""
        model = ""
        self._submitting += 1
        self._note_quiet()
        try:
            self._admit()
            card = self._catalog.resolve(generation.model)
            model = card.name
            check_token_ids(generation.sampling, card.vocab_size)
            tokenizer = await self._catalog.tokenizer(card)
            return await self._open(generation, card, tokenizer)
        except HeadraceError:
            meter.refused(model)
            raise
        except ApiError as error:  # JetStream is starting, electing, or full
            meter.refused(model)
            raise _refused(error) from error
        finally:
            self._submitting -= 1
            self._note_quiet()

    def _admit(self) -> None:
        if self._draining or self._tasks is None:
            raise HeadraceError("going_away", "This gateway is shutting down or starting: connect again.")
        if not self._broker.connected:
            raise NoAnswer("disconnected", "job")
        if len(self._entries) + self._disowned + self._submitting > self._limits.max_responses:
            raise HeadraceError("queue_full", "This gateway has all the responses it takes: try again later.")

    async def _open(self, generation: Generation, card: ModelCard, tokenizer: ChatTokenizer) -> Live:
        response = new_response_id()
        try:
            opened = await self._conversations.open(generation, response)
            built = await asyncio.to_thread(
                prompt.build,
                tokenizer,
                card.token,
                card.max_model_len,
                generation,
                opened.context,
                default_max_tokens=self._limits.default_max_tokens,
            )
            opened = replace(opened, context=built.context)  # rounds that did not fit are forgotten
            job = self._job(generation, card, opened, built)
            return await self._accept(generation, job, opened, tokenizer, card)
        except BaseException:
            self._spawn(self._conversations.abandon(generation, response), f"abandon {response}")
            raise

    def _job(self, generation: Generation, card: ModelCard, opened: Opened, built: prompt.Prompt) -> Job:
        user_text, messages = present(generation.messages)
        now_ms = int(time.time() * 1000)
        deadline_s = min(generation.deadline_s or self._limits.deadline_s, self._limits.deadline_s)
        return Job(
            response=opened.response,
            tenant=generation.tenant,
            session=session_token(self._secret, generation.tenant, opened.context.session or opened.response),
            gateway=self.gateway,
            model=card.token,
            model_name=generation.model or card.name,
            priority=generation.priority,
            prompt_ids=built.ids,
            sampling=built.sampling,
            presentation=Presentation(
                api=generation.api,
                stop=generation.stop,
                echo=generation.echo,
                conversation=generation.conversation,
                previous_response_id=generation.previous_response_id,
                user_text=user_text,
                store=generation.store,
                input=messages,
            ),
            created_unix_ms=now_ms,
            deadline_unix_ms=now_ms + int(deadline_s * 1000),
            cache_salt=cache_salt(self._secret, generation.tenant),
            traceparent=generation.traceparent,
        )

    async def _accept(
        self, generation: Generation, job: Job, opened: Opened, tokenizer: ChatTokenizer, card: ModelCard
    ) -> Live:
        """Registered before it is published: the first token may be here before the ack."""
        live = Live(job, generation, tokenizer.detokenizer, self, memory=opened.memory)
        counted = Meter(card.name, generation.received_unix_ms or job.created_unix_ms)
        entry = self._entries[job.response] = _Entry(live, opened, tokenizer, counted)
        try:
            await publish_job(self._broker, job)
        except BaseException as error:
            if self._entries.pop(job.response, None) is not None:
                counted.withdrawn()
            self._disown(job, error)
            raise
        live.accepted(time.time() * 1000)
        if live.end is None:
            loop = asyncio.get_running_loop()
            left_s = job.deadline_unix_ms / 1000 - time.time()
            entry.deadline = loop.call_later(max(0.0, left_s), self._deadline_passed, entry)
            if not live.attended:
                self.live_deserted(live)
        return live

    def _disown(self, job: Job, error: BaseException) -> None:
        """Nobody will read it, and it may be stored all the same: no worker shall spend time on it."""
        too_large = isinstance(error, HeadraceError) and error.code == "payload_too_large"
        if not too_large and not isinstance(error, ApiError):
            self._spawn(
                self._close_disowned(msgspec.structs.replace(job, prompt_ids=())), f"disown {job.response}"
            )

    async def _close_disowned(self, job: Job) -> None:
        self._disowned += 1
        try:
            closed = Closed(reason="cancelled")
            await closer.close_surely(self._broker, job, closed, lambda: closer.is_of_use(job))
        finally:
            self._disowned -= 1

    async def cancel(self, response: ResponseId, tenant: TenantId) -> None:
        """Close the log, of whichever gateway; the terminal update comes from the log, in stream order. No
        effect on an ended one. Raises ``HeadraceError``: response_not_found, broker_unavailable."""
        live = self.find(response, tenant)
        if live is not None and live.end is not None:
            return
        try:
            job = live.job if live is not None else await find_job(self._broker, response)
            if job is None or job.tenant != tenant:
                raise HeadraceError("response_not_found", f"There is no response {response}.")
            if live is None and await self._is_over(job):
                return
            await closer.close(self._broker, job, Closed(reason="cancelled"))
        except ApiError as error:
            raise _refused(error) from error

    async def _is_over(self, job: Job) -> bool:
        """Of another gateway's response; its log may have been deleted by its age."""
        reply_log = ReplyLog(self._broker, job.gateway, job.response, job.session)
        return not closer.is_of_use(job) or (await reply_log.read()).end is not None

    def find(self, response: ResponseId, tenant: TenantId) -> Live | None:
        """A response in flight here, or ended a short while ago. None for another tenant's."""
        entry = self._entries.get(response)
        live = entry.live if entry is not None else self._ended.find(response)
        return live if live is not None and live.tenant == tenant else None

    async def _tokenizer_of(self, job: Job) -> ChatTokenizer:
        card = self._catalog.by_token(job.model)
        if card is None:
            raise HeadraceError("model_not_found", f"No worker serves {job.model_name!r} any more.")
        return await self._catalog.tokenizer(card)

    # -- what the logs and the readers bring ----------------------------------------------------------

    def _on_message(self, response: ResponseId, seq: int, message: ReplyMessage) -> None:
        entry = self._entries.get(response)
        if entry is not None:
            entry.live.feed(seq, message)

    def live_started(self, live: Live) -> None:
        self._entries[live.response_id].meter.started()

    def live_tokens(self, live: Live, count: int) -> None:
        self._entries[live.response_id].meter.tokens(count)

    def live_attended(self, live: Live) -> None:
        entry = self._entries.get(live.response_id)
        if entry is not None and entry.grace is not None:
            entry.grace.cancel()
            entry.grace = None

    def live_deserted(self, live: Live) -> None:
        """A dropped connection is not a cancel: the client may come back within the grace time."""
        entry = self._entries.get(live.response_id)
        if entry is not None and entry.grace is None:
            wait_s = self._limits.disconnect_grace_s
            entry.grace = asyncio.get_running_loop().call_later(wait_s, self._grace_passed, entry)

    def live_stopped(self, live: Live, total: int) -> None:
        self._close_soon(self._entries[live.response_id], Closed(reason="stop", total=total))

    def live_ended(self, live: Live) -> None:
        entry = self._entries.pop(live.response_id)
        entry.stop_timers()
        assert live.end is not None
        entry.meter.ended(live.end)
        self._ended.keep(live, time.monotonic())
        self._conversations.will_close(live.response_id)
        closing = self._conversations.close(entry.opened, live.job, live.log, entry.tokenizer)
        self._spawn(closing, f"remember {live.response_id}")
        self._note_quiet()

    # -- closing logs from outside ------------------------------------------------------------------

    def _deadline_passed(self, entry: _Entry) -> None:
        self._close_soon(entry, Closed(reason="deadline", code="deadline_exceeded"))

    def _grace_passed(self, entry: _Entry) -> None:
        if not entry.live.attended:
            self._close_soon(entry, Closed(reason="cancelled"))

    def _close_soon(self, entry: _Entry, closed: Closed) -> None:
        if entry.closing and closed.reason != "stop":
            return  # a stop string ends the response here and now: whatever else was under way is given up
        entry.closing = True
        live = entry.live

        def needed() -> bool:  # the log alone ends a response, unless a stop string in its text did
            return live.end is None or (closed.reason == "stop" and closer.is_of_use(live.job))

        closing = closer.close_surely(self._broker, live.job, closed, needed)
        self._spawn(closing, f"close {live.response_id}")

    # -- background -----------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """A task of ``run``'s group: a bug in it ends the process. When ``run`` is ending, so is its work."""
        try:
            if self._tasks is None:
                raise RuntimeError("not running")
            task = self._tasks.create_task(work, name=name)
        except RuntimeError:  # what a task group says when it is shutting down
            work.close()
            return
        self._background.add(task)
        task.add_done_callback(self._background_done)
        self._note_quiet()

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        self._note_quiet()

    def _note_quiet(self) -> None:
        if self._entries or self._background or self._submitting:
            self._quiet.clear()
        else:
            self._quiet.set()


def _refused(error: ApiError) -> HeadraceError:
    log.warning("JetStream refused: %s", error)
    return HeadraceError("broker_unavailable", "The queue cannot be used right now: try again.")
