"""From a checked request to an accepted response; and what becomes of those that end.

``find``, ``attach``, ``cancel`` and what else there is by a response's id is ``lookup``'s. Must not know
HTTP, WebSockets or any API's JSON.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import replace
from functools import partial

import msgspec
from redis.asyncio import Redis

from broker.connection import Broker, NoAnswer, unix_ms
from broker.jetstream import ApiError
from broker.presence import Roster
from broker.survey import GATEWAY_INTERVAL_S, Survey
from broker.tail import ReplyTail
from gateway import closer, prompt
from gateway.abilities import check_abilities
from gateway.acceptance import NotFirst, Opening, accept
from gateway.admission import Admission, Ticket
from gateway.background import Background
from gateway.calling import settle
from gateway.catalog import Catalog, ModelCard
from gateway.context import NOTHING, is_deleted
from gateway.conversation import Conversations, Opened
from gateway.ended import EndedResponses
from gateway.entry import Accepted, Entry
from gateway.erasure import Erased
from gateway.generation import Generation
from gateway.in_flight import InFlight
from gateway.jobs import make_job, request_digest, sent
from gateway.joining import Joining
from gateway.live import Live, now_ms
from gateway.lookup import Lookup, refused
from gateway.meter import Meter
from gateway.records import Records
from gateway.redis_health import RedisHealth
from gateway.router import Offer, Router
from gateway.routing import queue_of_card
from gateway.sharing import Sharing
from gateway.tokenizer import ChatTokenizer
from gateway.turnstile import Turnstile
from gateway.workers_alive import WorkersAlive
from schemas.config import Config
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ResponseId, keyed_response_id, new_process_id, new_response_id
from schemas.job import Job
from schemas.reply import Closed

log = logging.getLogger(__name__)

DRAIN_LOOK_S = 0.05


class Pipeline:
    """``gateway``: this process's id in subjects. ``run`` must be running for ``submit`` to accept."""

    def __init__(self, config: Config, broker: Broker, redis: Redis) -> None:
        self.gateway = GatewayId(new_process_id("gw"))
        self._limits = config.gateway
        self._broker = broker
        self._secret = (config.security.secret or secrets.token_hex(32)).encode()
        self._redis, self._redis_health = redis, (health := RedisHealth())
        self._roster = Roster(broker)
        self._catalog = Catalog(broker, self._roster, default_model=config.gateway.default_model)
        self._router = Router(
            self._catalog,
            config.routing,
            default_model=config.gateway.default_model,
            queue_ms=self._queue_ms,
        )
        self._admission = Admission(config.limits, config.gateway, redis, health, broker, self._catalog)
        self._background = Background()
        self._records = Records(self.gateway, config.logging, config.tracing)
        self._in_flight = InFlight(
            broker,
            self.gateway,
            config.gateway,
            self._background,
            on_ended=self._on_ended,
            on_held=lambda entry: self._joining.held(entry),
            on_started=self._records.started,
        )
        self._sharing = Sharing(redis, self._redis_health, config.cache, self._secret, self._background)
        self._joining = Joining(
            broker,
            self._sharing.cache,
            self._background,
            attach=lambda response, tenant: self.attach(response, tenant),
            is_live=self._in_flight.is_live,
        )
        self._tail = ReplyTail(broker, self.gateway, on_message=self._in_flight.feed)
        self._survey = Survey(broker, interval_s=GATEWAY_INTERVAL_S, name_of=self._catalog.name_of)
        self._workers_alive = WorkersAlive(self._catalog, self._roster, self._survey.has_jobs)
        self._ended = EndedResponses()
        lookup = Lookup(
            broker,
            self._catalog,
            self._in_flight,
            self._ended,
            forget_context=lambda tenant, response: self.conversations.forget_response(tenant, response),
        )
        self.find, self.attach, self.find_request = lookup.find, lookup.attach, lookup.find_request
        self.cancel, self.delete = lookup.cancel, lookup.delete
        self._find_anywhere = lookup.find_anywhere
        self.conversations = Conversations(
            redis,
            self._redis_health,
            broker,
            self._secret,
            rounds=config.gateway.conversation_rounds,
            ttl_s=config.gateway.conversation_ttl_s,
            tokenizer_of=lookup.tokenizer_of,
            is_live=self._in_flight.__contains__,
            settle=self._settle,
        )
        self._erased = Erased(broker, on_erased=lookup.forget, on_missed=self._ended.drop_all)
        self._turnstile = Turnstile()
        self._submitting = 0
        self._keyed: dict[ResponseId, asyncio.Event] = {}  # being submitted under an idempotency key
        self._disowned = 0  # refused jobs that may be stored: with them, too, no more than max_responses
        self._draining = False

    # -- life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tail the logs and follow the roster. Never returns; raises ``BrokerClosed`` when the broker is
        gone for good."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._background.attach(tasks)
                tasks.create_task(self._broker.closed(), name="broker-closed")
                tasks.create_task(self._tail.run(), name="reply-tail")
                tasks.create_task(self._in_flight.run(), name="in-flight")
                tasks.create_task(self._roster.run(), name="roster")
                tasks.create_task(self._catalog.run(), name="catalog")
                tasks.create_task(self._ended.run(), name="ended-responses")
                tasks.create_task(self._erased.run(), name="erased-responses")
                tasks.create_task(self._admission.tenants.run(), name="tenant-limits")
                tasks.create_task(self._admission.queues.run(), name="queue-watch")
                tasks.create_task(self._survey.run(), name="survey")
                tasks.create_task(self._workers_alive.run(), name="workers alive")
                tasks.create_task(self._redis_health.watch(self._redis), name="redis-health")
                tasks.create_task(self._admission.retention.run(), name="retention-watch")
        finally:
            self._background.attach(None)
            await self._catalog.close()
            await self._records.close()

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
        alone = "; limits count on this gateway alone" if self._redis_health.is_away else ""
        return True, f"serving {', '.join(card.name for card in models)}{alone}"

    def models(self) -> list[ModelCard]:
        return self._catalog.models()

    def offers(self) -> list[Offer]:
        """The names that a request may give for a model."""
        return self._router.offers()

    @property
    def quiet(self) -> bool:
        """Nothing is in flight, and what ended is remembered."""
        return not (self._in_flight or self._background or self._submitting)

    async def drain(self) -> None:
        """Refuse new responses (going_away) and wait for those in flight, ``gateway.drain_s`` at most, not
        for those whose clients have gone on to another gateway. What is left stays in the queue."""
        self._draining = True
        try:
            async with asyncio.timeout(self._limits.drain_s):
                while self._in_flight.kept_here or self._background or self._submitting:  # noqa: ASYNC110
                    await asyncio.sleep(DRAIN_LOOK_S)  # clients elsewhere set no event here
        except TimeoutError:
            log.warning("%d responses are still in flight", len(self._in_flight))

    # -- requests -----------------------------------------------------------------------------------

    async def submit(self, generation: Generation) -> Live:
        """Accept a response. Raises ``HeadraceError`` on refusal; once it returns, the response is stored
        and reaches one terminal update. Attach a reader within the grace time. With an idempotency key that
        was used before it is the response to the first request with that key, of whichever gateway, for as
        long as the queue keeps its job."""
        self._submitting += 1
        try:
            await self._turnstile.enter()
            if generation.idempotency_key is None:
                return await self._submit_new(generation, new_response_id())
            return await self._submit_once(generation, generation.idempotency_key)
        finally:
            self._submitting -= 1

    async def _submit_once(self, generation: Generation, key: str) -> Live:
        """The first request with a key costs one round trip to the queue, as any other: it is the queue that
        tells a repeated one. What is refused may be a repeated one, too: its conversation has gone on."""
        response = keyed_response_id(self._secret, generation.tenant, key)
        while (submitting := self._keyed.get(response)) is not None:
            await submitting.wait()
        self._keyed[response] = done = asyncio.Event()
        try:
            first = self.find(response, generation.tenant)
            if first is None:
                try:
                    return await self._submit_new(generation, response)
                except NotFirst:
                    first = await self.attach(response, generation.tenant)
                except HeadraceError as error:
                    if error.code == "broker_unavailable":
                        raise
                    first = await self._find_anywhere(response, generation.tenant)
                    if first is None:
                        raise
        finally:
            del self._keyed[response]
            done.set()
        if first.job.request_digest != request_digest(generation):
            raise HeadraceError(
                "idempotency_conflict",
                "This idempotency key was used for another request: take a new key for each request.",
                param="idempotency_key",
            )
        return first

    async def _submit_new(self, generation: Generation, response: ResponseId) -> Live:
        model, generation = "", self._records.begin(generation)
        try:
            self._admit()
            model = self._router.route(generation, NOTHING)[0].name
            return await self._open(generation, response)
        except (HeadraceError, ApiError) as error:  # JetStream is starting, electing, or full
            told = refused(error) if isinstance(error, ApiError) else error
            self._records.refused(generation, model, told)
            raise told from error.__cause__

    def _queue_ms(self, card: ModelCard) -> float:
        """How long a request would wait for this model, as far as is known."""
        wait = self._admission.queues.wait_of_next(card, self._limits.default_class, "fair")
        return queue_of_card(card) if wait.eta_ms is None else wait.eta_ms

    def _admit(self) -> None:
        if self._draining or not self._background.open:
            raise HeadraceError("going_away", "This gateway is shutting down or starting: connect again.")
        if not self._broker.connected:
            raise NoAnswer("disconnected", "job")
        if self._in_flight.accepted + self._disowned + self._submitting > self._limits.max_responses:
            raise HeadraceError("queue_full", "This gateway has all the responses it takes: try again later.")

    async def _open(self, generation: Generation, response: ResponseId) -> Live:
        settled = False  # the job may be stored, and then has the turn
        opened: Opened | None = None
        ticket: Ticket | None = None
        try:
            opened = await self.conversations.open(generation, response)
            card, route = self._router.route(generation, opened.context)  # what is remembered counts, too
            check_abilities(generation, card)
            ticket = await self._admission.admit(generation, card, response)
            tokenizer = await self._catalog.tokenizer(card)
            form = self._limits.tool_formats.get(card.name, "")
            asked = settle(generation, tokenizer.manner, form, can_force=card.structured_output)
            building = partial(
                prompt.build,
                tokenizer,
                card.token,
                card.max_model_len,
                asked,
                opened.context,
                default_max_tokens=self._limits.default_max_tokens,
            )
            short = prompt.is_short(asked, opened.context)
            built = building() if short else await asyncio.to_thread(building)
            opened = replace(opened, context=built.context)  # rounds that did not fit are forgotten
            job = make_job(
                generation,
                card,
                route,
                opened,
                built,
                gateway=self.gateway,
                lane=ticket.lane,
                secret=self._secret,
                now_unix_ms=unix_ms(),
                max_deadline_s=self._limits.deadline_s,
            )
            settled = True
            async with self._sharing.plan(job, generation.cache) as plan:
                return await self._accept(generation, plan.job, plan.opening, opened, tokenizer, card, ticket)
        except BaseException as error:
            if ticket is not None:
                ticket.withdraw()
            # With a key, the client may be asking again already, and its next try holds the same claim.
            was_refused = isinstance(error, HeadraceError | ApiError) and not settled
            over = isinstance(error, NotFirst) and opened is not None and opened.is_new
            if generation.idempotency_key is None or was_refused or over or _is_known_not_stored(error):
                self._background.spawn(
                    self.conversations.abandon(generation, response), f"abandon {response}"
                )
            raise

    async def _accept(
        self,
        generation: Generation,
        job: Job,
        opening: Opening | None,
        opened: Opened,
        tokenizer: ChatTokenizer,
        card: ModelCard,
        ticket: Ticket,
    ) -> Live:
        job = sent(job, generation.received_unix_ms, now_ms())
        detokenizer = tokenizer.detokenizer_of(job.presentation.shape)
        live = Live(job, detokenizer, self._in_flight, is_own=True)
        counted = Meter(card.name, generation.received_unix_ms or job.created_unix_ms)
        accepted = Accepted(opened, tokenizer, counted, ticket, generation.trace)
        if job.response in self._in_flight:  # another gateway was quicker, and somebody follows it here
            raise NotFirst
        ticket.begin(live, waits=opening is None)
        ended = isinstance(opening, Closed)
        entry = None if ended else self._in_flight.register(live, accepted)
        try:
            queue_seq, log_seq = await accept(self._broker, job, opening)
            if ended and log_seq is None:  # found elsewhere without an end, and put in the queue
                raise NotFirst
        except BaseException as error:
            if live.end is None:
                if entry is not None:
                    self._in_flight.withdraw(entry)
                counted.withdrawn()
            self._disown(job, error)
            raise
        if entry is not None:
            self._in_flight.begin(entry)
        elif isinstance(opening, Closed) and log_seq is not None:  # its log's first message, and the last
            self._in_flight.begin(self._in_flight.register(live, accepted))
            self._in_flight.feed(job.response, log_seq, opening, now_ms())
        if opening is None:
            ticket.stored(live, queue_seq)
        return live

    def _disown(self, job: Job, error: BaseException) -> None:
        """Nobody will read it, and it may be stored all the same: no worker shall spend time on it. One with
        an idempotency key may be asked for again, and is then answered."""
        if not job.request_digest and not _is_known_not_stored(error):
            self._background.spawn(
                self._close_disowned(msgspec.structs.replace(job, prompt_ids=())), f"disown {job.response}"
            )

    async def _close_disowned(self, job: Job) -> None:
        self._disowned += 1
        try:
            closed = Closed(reason="cancelled")
            await closer.close_surely(self._broker, job, closed, lambda: closer.is_of_use(job))
        finally:
            self._disowned -= 1

    # -- held jobs ------------------------------------------------------------------------------------

    async def _settle(self, job: Job) -> None:
        """Follow what another gateway left without an end and without a worker: that brings one of them."""
        await self.attach(job.response, job.tenant)

    # -- ends -----------------------------------------------------------------------------------------

    def _on_ended(self, entry: Entry) -> None:
        live, accepted = entry.live, entry.accepted
        if not is_deleted(live.log):
            self._ended.keep(live, time.monotonic())
        self._sharing.ended(entry)
        self._records.ended(entry)
        if accepted is not None:
            accepted.ticket.settle(live)
            if self.conversations.will_close(accepted.opened, live.job):
                closing = self.conversations.close(accepted.opened, live.job, live.log, accepted.tokenizer)
                self._background.spawn(closing, f"remember {live.response_id}")


def _is_known_not_stored(error: BaseException) -> bool:
    too_large = isinstance(error, HeadraceError) and error.code == "payload_too_large"
    return too_large or isinstance(error, ApiError)
