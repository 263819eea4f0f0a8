"""One job on this worker: carries out what ``run_state`` decides, and lets tokens past it to the publisher.

A run is one task, woken by news and about three times per ack_wait; never by a token. Must not know how
jobs are pulled, nor how many run at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import MutableMapping
from dataclasses import dataclass

import msgspec

from broker import jetstream, metrics, topology
from broker.connection import Broker, unix_ms
from broker.jobs import JobDelivery
from broker.log_reader import LogReader
from broker.log_writer import LogWriter
from broker.replylog import FenceLost, ReplyLog
from schemas import codec
from schemas.errors import HeadraceError
from schemas.ids import (
    GatewayId,
    ModelToken,
    ResponseId,
    SessionToken,
    WorkerId,
    parse_response_id,
    parse_token,
)
from schemas.job import PRIORITIES, Job
from schemas.reply import Closed, Failed, Finished, Started, Timings, Usage
from workers import run_state as s
from workers.burial import bury_job
from workers.engine.base import Delta, Engine, EngineRequest, RequestEnd
from workers.publisher import Outlet, Publisher
from workers.quarantine import Quarantine, is_suspect

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs of a worker share. ``live``: the runs whose requests are in the engine."""

    broker: Broker
    engine: Engine
    publisher: Publisher
    worker: WorkerId
    model: ModelToken
    model_name: str  # the label of metrics
    hold_interval_s: float
    live: MutableMapping[ResponseId, Run]
    quarantine: Quarantine


class Run:
    """``earlier``: a run of the same response that this worker still has; it ends before this one begins."""

    def __init__(self, bench: Bench, delivery: JobDelivery, *, earlier: Run | None = None) -> None:
        self.response = response_of(delivery)
        self.over = asyncio.Event()
        self._bench = bench
        self._delivery = delivery
        self._earlier = earlier
        self._clock = asyncio.get_running_loop().time
        self._pulled_s = self._clock()
        self._pulled_unix_ms = unix_ms()
        self._inbox: deque[s.Event] = deque()  # a handful: each kind of news comes once or is harmless twice
        self._news = asyncio.Event()
        self._job: Job  # once it is read
        self._known_log: ReplyLog | None = None
        self._writer: LogWriter | None = None
        self._outlet: Outlet | None = None
        self._suspect = False

    @property
    def ack_subject(self) -> str:
        return self._delivery.ack_subject

    def post(self, event: s.Event) -> None:
        if isinstance(event, s.Nudged) and event in self._inbox:
            return  # anyone may send hints, as many as they like
        self._inbox.append(event)
        self._news.set()

    def on_delta(self, delta: Delta) -> None:
        """Called in the engine's step."""
        assert self._writer is not None
        assert self._outlet is not None
        if delta.ids:
            self._writer.append(delta.ids, delta.logprobs)
            if self._suspect:
                self._suspect = False
                self._bench.quarantine.release(self)
        if delta.end is None:
            self._bench.publisher.mark(self._outlet)
        else:  # the terminal repeats all tokens, the last ones need no message of their own
            self._bench.live.pop(self.response, None)
            self.post(s.EngineEnded(delta.end))

    async def run(self) -> None:
        """From the pulled job to its ack, nak or silence. A bug that one job brings out costs that job an
        attempt, and the others of this worker nothing."""
        try:
            if self._earlier is not None:
                self._earlier.post(s.Superseded())
                await self._earlier.over.wait()
                self._earlier = None
            await self._live_through()
        except Exception:
            log.critical("%s: an attempt failed", self.response, exc_info=True)
            await self._give_up()
        finally:
            self._let_go()
            self._bench.quarantine.release(self)
            self.over.set()

    async def _give_up(self) -> None:
        """After a Started the poison rule counts attempts, so others may try. Before it nothing would."""
        self._let_go()
        if self._writer is not None:
            await self._delivery.nak()
            return
        why = "A worker failed on this job."
        effects: list[s.Effect] = [s.Bury("invalid_job", why), s.Ack()]
        if self._known_log is not None:
            effects.insert(1, s.CloseLog("refused", "internal_error", why))
        for effect in effects:
            if isinstance(await self._carry_out(effect), s.Broken):
                return

    async def _live_through(self) -> None:
        first = self._read_job()
        deadline_s = self._pulled_s
        if isinstance(first, s.JobRead):
            latest_unix_ms = self._delivery.stored_unix_ms + topology.MAX_DEADLINE_S * 1000
            deadline_unix_ms = min(self._job.deadline_unix_ms, latest_unix_ms)
            deadline_s += (deadline_unix_ms - self._pulled_unix_ms) / 1000
        state = s.RunState(deadline_s=deadline_s, hold_interval_s=self._bench.hold_interval_s)
        event: s.Event | None = first
        while event is not None:
            event = await self._handle(state, event)
            if event is None and state.state is not s.State.OVER:
                event = await self._next_event(state.due_s)
        if state.outcome is not None:
            self._count(state.outcome)

    async def _handle(self, state: s.RunState, event: s.Event) -> s.Event | None:
        """What the last effect brought: only the last one brings anything, but for Broken."""
        brought: s.Event | None = None
        for effect in state.handle(event, self._clock()):
            brought = await self._carry_out(effect)
            if isinstance(brought, s.Broken):  # what follows rests on it: no ack for what was not stored
                return None if state.state is s.State.OVER else brought
        return brought

    async def _next_event(self, due_s: float | None) -> s.Event:
        while not self._inbox:
            self._news.clear()
            try:
                async with asyncio.timeout_at(due_s):
                    await self._news.wait()
            except TimeoutError:
                return s.Tick()
        return self._inbox.popleft()

    # -- effects --------------------------------------------------------------------------------------

    async def _carry_out(self, effect: s.Effect) -> s.Event | None:
        try:
            return await self._effect(effect)
        except (HeadraceError, jetstream.ApiError) as error:
            # Not carried out and not to be: the job is not acked, so it comes again after ack_wait.
            log.error("%s: %s failed: %s", self.response, type(effect).__name__, error)
            return s.Broken()

    async def _effect(self, effect: s.Effect) -> s.Event | None:
        match effect:
            case s.ReadLog():
                return s.LogRead(ended=(await self._log.read()).end is not None)
            case s.ClaimLog():
                return await self._claim()
            case s.Submit():
                self._submit()
            case s.Abort():
                self._let_go()
            case s.Look():
                return s.LeaseSeen(await self._look())
            case s.Hold():
                await self._delivery.in_progress()
            case s.Finish(end):
                return await self._end(self._finished(end))
            case s.Fail(code, message):
                metrics.ERRORS.labels(code=code).inc()
                return await self._end(self._writer_in_use.failed(code, message))
            case s.CloseLog(reason, code, message):
                metrics.ERRORS.labels(code=code).inc()
                await self._log.close(Closed(reason=reason, code=code, message=message))
            case s.Bury(code, message):
                log.error("%s goes to the dead letters: %s: %s", self.response, code, message)
                job, bench = self._delivery.delivery, self._bench
                await bury_job(bench.broker, bench.model, self.response, job, self._known_log, code, message)
                metrics.DEAD_LETTERS.labels(model=bench.model_name, code=code).inc()
            case s.HandOff():
                return await self._hand_off()
            case s.Ack():
                await self._delivery.ack()
            case s.Nak(delay_s):
                await self._delivery.nak(delay_s)
        return None

    async def _claim(self) -> s.Event:
        def started(attempt: int) -> Started:
            return Started(
                attempt=attempt,
                worker=self._bench.worker,
                ack_subject=self._delivery.ack_subject,
                delivered=self._delivery.delivered,
                pulled_unix_ms=self._pulled_unix_ms,
                queued_unix_ms=self._delivery.stored_unix_ms,
            )

        def may_start(history: LogReader) -> bool:
            self._suspect = is_suspect(history)
            if self._suspect:
                return self._bench.quarantine.admit(self)
            self._bench.quarantine.release(self)  # another writer was quicker, and it brought tokens
            return True

        redelivered = self._delivery.delivered > 1
        claim = await self._log.claim(started, may_start=may_start, redelivered=redelivered)
        history = claim.history
        if claim.held_back:
            log.debug("%s waits: another job that may be poison runs here", self.response)
            return s.Claimed(mine=False, later=True)
        if claim.fence is None:
            closed = history.end is not None and isinstance(history.end.message, Closed)
            return s.Claimed(mine=False, ended=history.end is not None, closed=closed)
        if history.attempts:
            attempt, tokens = history.attempts + 1, len(history.ids)
            log.info("%s: attempt %d, continues after %d tokens", self.response, attempt, tokens)
        self._writer = LogWriter(claim.fence, history.ids, history.logprobs)
        return s.Claimed(mine=True)

    def _submit(self) -> None:
        job, writer = self._job, self._writer_in_use
        self._outlet = self._bench.publisher.open(self._log, writer, pulled_s=self._pulled_s)
        self._bench.live[self.response] = self
        self._bench.engine.submit(
            EngineRequest(
                request_id=self.response,
                prompt_ids=job.prompt_ids,
                sampling=job.sampling,
                prior_ids=tuple(writer.ids),
                priority=PRIORITIES.index(job.priority),
                cache_salt=job.cache_salt,
                traceparent=job.traceparent,
            )
        )
        model = self._bench.model_name
        metrics.WORKER.prompt_tokens.labels(model=model).inc(len(job.prompt_ids))
        if writer.total:
            metrics.CONTINUED_TOKENS.labels(model=model).inc(writer.total)

    def _let_go(self) -> None:
        """Out of the engine and away from the publisher; safe at any time."""
        if self._bench.live.get(self.response) is self:
            del self._bench.live[self.response]
            self._bench.engine.abort(self.response)
        if self._outlet is not None:
            self._bench.publisher.close(self._outlet)

    async def _look(self) -> s.Lease:
        """Rule 6: the last fence is our own, or the response is not ours."""
        try:
            found = await self._log.lease()
            if found is None:
                return "gone"
            seq, message = found
            if seq == self._writer_in_use.fence:
                return "mine"
            if isinstance(message, Closed):
                return "ended"
            return "ended" if (await self._log.read()).end is not None else "lost"
        except (HeadraceError, jetstream.ApiError):
            return "unknown"

    async def _end(self, message: Finished | Failed) -> s.Event:
        self._let_go()
        try:
            await self._log.end(message)
        except FenceLost as lost:
            return s.Refused(lost.ended)
        return s.Stored()

    async def _hand_off(self) -> s.Event:
        if self._bench.live.get(self.response) is self:
            del self._bench.live[self.response]
            self._bench.engine.abort(self.response)
        if self._outlet is not None:
            await self._bench.publisher.flush(self._outlet)
        self._let_go()
        try:
            return s.HandedOff(await self._log.hand_off(self._writer_in_use.fence))
        except (HeadraceError, jetstream.ApiError) as error:
            log.warning("%s was not handed off, it waits for ack_wait: %s", self.response, error)
            return s.HandedOff(False)

    # -- what the job and its delivery say ------------------------------------------------------------

    def _read_job(self) -> s.Event:
        delivery = self._delivery.delivery
        labels = {"model": self._bench.model_name}
        metrics.WORKER.queue_wait_s.labels(**labels).observe(self._queue_ms / 1000)
        if delivery.delivered > 1:
            metrics.REDELIVERED.labels(**labels).inc()
        try:
            job = codec.decode_job(delivery.data)
        except msgspec.DecodeError as error:
            return self._unreadable(str(error))
        if job.response != self.response or job.model != self._bench.model:
            return self._unreadable(f"{job.response} for {job.model} does not belong on {delivery.subject}")
        self._job = job
        self._known_log = ReplyLog(self._bench.broker, job.gateway, job.response, job.session)
        return s.JobRead()

    def _unreadable(self, reason: str) -> s.Event:
        """The headers may still tell where the client waits for an answer."""
        headers = self._delivery.delivery.headers or {}
        try:
            gateway = GatewayId(parse_token(headers["Hr-Gateway"]))
            session = SessionToken(parse_token(headers["Hr-Session"]))
        except (KeyError, ValueError):
            return s.JobUnreadable(reason, addressed=False)
        self._known_log = ReplyLog(self._bench.broker, gateway, self.response, session)
        return s.JobUnreadable(reason, addressed=True)

    @property
    def _log(self) -> ReplyLog:
        assert self._known_log is not None
        return self._known_log

    @property
    def _writer_in_use(self) -> LogWriter:
        assert self._writer is not None
        return self._writer

    @property
    def _queue_ms(self) -> float:
        return max(0.0, self._pulled_unix_ms - self._delivery.stored_unix_ms)

    def _finished(self, end: RequestEnd) -> Finished:
        assert end.reason is not None
        writer = self._writer_in_use
        metrics.WORKER_CACHED_PROMPT_TOKENS.labels(model=self._bench.model_name).inc(end.cached_tokens)
        usage = Usage(
            prompt_tokens=len(self._job.prompt_ids),
            cached_tokens=end.cached_tokens,
            completion_tokens=writer.total,
        )
        timings = Timings(
            queue_ms=self._queue_ms,
            engine_queue_ms=end.engine_queue_ms,
            prefill_ms=end.prefill_ms,
            decode_ms=end.decode_ms,
        )
        return writer.finished(end.reason, usage, timings, end.stop_token)

    def _count(self, outcome: s.Outcome) -> None:
        model = self._bench.model_name
        metrics.WORKER.requests.labels(model=model, outcome=outcome).inc()
        if outcome in ("completed", "incomplete"):
            metrics.WORKER.end_to_end_s.labels(model=model).observe(self._clock() - self._pulled_s)


def response_of(delivery: JobDelivery) -> ResponseId:
    """From the subject, which is there even where the job does not decode. It becomes part of other subjects,
    so what is no response id is replaced by a name for it."""
    found = delivery.delivery.subject.rpartition(".")[2]
    try:
        return parse_response_id(found)
    except HeadraceError:
        return ResponseId(f"unreadable-{hashlib.sha256(found.encode()).hexdigest()[:16]}")
