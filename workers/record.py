"""What is told of one run: metrics, a line in the log when it is over, and its spans. Never what was asked or
answered. Must not know what becomes of a job.
"""

from __future__ import annotations

import asyncio
import logging
import time

from broker import metrics
from broker.connection import unix_ms
from broker.jobs import JobDelivery
from broker.process import known
from broker.telemetry import Telemetry, Trace, trace_id_of
from schemas.ids import ResponseId, WorkerId
from schemas.job import Job
from schemas.reply import Started, Timings
from workers.engine.base import RequestEnd
from workers.run_state import Outcome

log = logging.getLogger(__name__)


class RunRecord:
    """Begins when the job is pulled. ``telemetry`` None: nothing is traced; ``shown``: lines are logged."""

    def __init__(
        self,
        response: ResponseId,
        delivery: JobDelivery,
        *,
        worker: WorkerId,
        model_name: str,
        telemetry: Telemetry | None,
        shown: bool,
    ) -> None:
        self._pulled_at_ms = time.time() * 1000  # as fine as the store's stamp, with which it is compared
        self.pulled_unix_ms = int(self._pulled_at_ms)
        self._response = response
        self._delivery = delivery
        self._worker = worker
        self._model_name = model_name
        self._telemetry = telemetry
        self._shown = shown
        self._clock = asyncio.get_running_loop().time
        self._pulled_s = self._clock()
        self._job: Job | None = None
        self._trace: Trace | None = None
        self._attempt = 0  # of the response, from 1; 0: not begun
        self._prior_tokens = 0
        self._submitted_unix_ms = 0
        self._end: RequestEnd | None = None
        self._code = ""
        metrics.WORKER.queue_wait_s.labels(model=model_name).observe(self.queue_ms / 1000)
        if delivery.delivered > 1:
            metrics.REDELIVERED.labels(model=model_name).inc()

    @property
    def queue_ms(self) -> float:
        """Job stored to job pulled."""
        return max(0.0, self._pulled_at_ms - self._delivery.stored_unix_ms)

    @property
    def traceparent(self) -> str | None:
        """For the engine: below this run's span, or the job's own where nothing is traced here."""
        if self._trace is not None:
            return self._trace.traceparent
        return None if self._job is None else self._job.traceparent

    def read(self, job: Job) -> None:
        self._job = job

    def claiming(self, attempt: int, before: Started | None) -> str | None:
        """The traceparent that its Started is to carry. ``before``: of the writer before this one, whose span
        is linked: it may have died with its process and never be told of. The last call counts."""
        self._attempt = attempt
        if self._telemetry is None or self._job is None:
            return None
        attributes: dict[str, str | int] = {
            "gen_ai.response.id": self._job.response,
            "gen_ai.request.model": self._model_name,
            "headrace.tenant": self._job.tenant,
            "headrace.worker": self._worker,
            "headrace.attempt": attempt,
        }
        self._trace = self._telemetry.begin(
            "attempt",
            "consumer",
            self.pulled_unix_ms,
            attributes,
            parent=self._job.traceparent,
            link=None if before is None else before.traceparent,
        )
        return self._trace.traceparent

    def submitted(self, prior_tokens: int) -> None:
        """To the engine, with the tokens of earlier attempts."""
        self._submitted_unix_ms, self._prior_tokens = unix_ms(), prior_tokens
        if self._job is not None:
            metrics.WORKER.prompt_tokens.labels(model=self._model_name).inc(len(self._job.prompt_ids))
        if prior_tokens:
            metrics.CONTINUED_TOKENS.labels(model=self._model_name).inc(prior_tokens)

    def finished(self, end: RequestEnd) -> Timings:
        self._end = end
        metrics.WORKER_CACHED_PROMPT_TOKENS.labels(model=self._model_name).inc(end.cached_tokens)
        return Timings(
            queue_ms=self.queue_ms,
            engine_queue_ms=end.engine_queue_ms,
            prefill_ms=end.prefill_ms,
            decode_ms=end.decode_ms,
        )

    def failed(self, code: str) -> None:
        self._code = code
        metrics.ERRORS.labels(code=code).inc()

    def buried(self, code: str) -> None:
        self._code = code
        metrics.DEAD_LETTERS.labels(model=self._model_name, code=code).inc()

    def over(self, outcome: Outcome, total_tokens: int) -> None:
        """``total_tokens``: of the response, earlier attempts' included."""
        labels = {"model": self._model_name}
        metrics.WORKER.requests.labels(**labels, outcome=outcome).inc()
        if outcome in ("completed", "incomplete"):
            metrics.WORKER.end_to_end_s.labels(**labels).observe(self._clock() - self._pulled_s)
        new_tokens = max(0, total_tokens - self._prior_tokens)
        self._end_trace(outcome, new_tokens)
        if self._shown:
            log.info("attempt ended", extra=self._fields(outcome, new_tokens))

    def _end_trace(self, outcome: Outcome, new_tokens: int) -> None:
        trace, end = self._trace, self._end
        if trace is None:
            return
        trace.stage("queue", self._pulled_at_ms - self.queue_ms, self._pulled_at_ms)
        attributes: dict[str, str | int] = {
            "headrace.outcome": outcome,
            "headrace.prior_tokens": self._prior_tokens,
            "gen_ai.usage.output_tokens": new_tokens,
        }
        if end is not None:
            at_ms = float(self._submitted_unix_ms)
            attributes["headrace.cached_tokens"] = end.cached_tokens
            for name, took_ms in (
                ("engine queue", end.engine_queue_ms),
                ("prefill", end.prefill_ms),
                ("decode", end.decode_ms),
            ):
                trace.stage(name, at_ms, at_ms + took_ms)
                at_ms += took_ms
        trace.end(unix_ms(), attributes, error=self._code or None)

    def _fields(self, outcome: Outcome, new_tokens: int) -> dict[str, str | int | float]:
        job, end = self._job, self._end
        fields: dict[str, str | int | float | None] = {
            "response": self._response,
            "model": self._model_name,
            "worker": self._worker,
            "outcome": outcome,
            "code": self._code,
            "attempt": self._attempt,
            "delivered": self._delivery.delivered,
            "prior_tokens": self._prior_tokens,
            "new_tokens": new_tokens,
            "queue_ms": self.queue_ms,
            "total_ms": (self._clock() - self._pulled_s) * 1000,
        }
        if job is not None:
            fields |= {
                "request_id": job.request_id,
                "tenant": job.tenant,
                "session": job.session,
                "priority": job.priority,
                "lane": job.lane,
                "prompt_tokens": len(job.prompt_ids),
                "gateway": job.gateway,
                "trace_id": trace_id_of(job.traceparent),
            }
        if end is not None:
            fields |= {
                "reason": end.reason,
                "cached_tokens": end.cached_tokens,
                "engine_queue_ms": end.engine_queue_ms,
                "prefill_ms": end.prefill_ms,
                "decode_ms": end.decode_ms,
            }
        return known(fields)
