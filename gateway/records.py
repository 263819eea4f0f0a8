"""What is told of each response: metrics and one line in the log when it is over, and its trace.

Never what was asked or answered, never a key; deploy/LOGS.md and deploy/TRACING.md say what each field means.
Must not know how a response comes to its end.
"""

from __future__ import annotations

import logging

from msgspec.structs import asdict, replace

from broker.metrics import TAKEOVERS
from broker.process import known
from broker.telemetry import telemetry_of, trace_id_of
from gateway import meter
from gateway.entry import Entry
from gateway.generation import Ended, Generation
from gateway.live import Live, now_ms
from gateway.sharing import saved_by
from schemas.config import Logging, Tracing
from schemas.errors import HeadraceError
from schemas.ids import GatewayId
from schemas.reply import Started

log = logging.getLogger(__name__)

Fields = dict[str, str | int | float | None]


class Records:
    def __init__(self, gateway: GatewayId, logging_: Logging, tracing: Tracing) -> None:
        """Raises ``ConfigError``."""
        self._gateway = gateway
        self._shown = logging_.responses
        self._telemetry = telemetry_of(tracing, "gateway", gateway)  # None: nothing is traced

    def begin(self, generation: Generation) -> Generation:
        """From now on its trace goes through this gateway's span."""
        if self._telemetry is None:
            return generation
        operation = _operation(generation.api)
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.max_tokens": generation.sampling.max_tokens,
            "headrace.api": generation.api,
            "headrace.tenant": generation.tenant,
        }
        if generation.request_id:
            attributes["headrace.request_id"] = generation.request_id
        begun_unix_ms = generation.received_unix_ms or now_ms()
        parent = generation.traceparent
        trace = self._telemetry.begin(operation, "server", begun_unix_ms, attributes, parent=parent)
        return replace(generation, trace=trace, traceparent=trace.traceparent)

    def refused(self, generation: Generation, model: str, error: HeadraceError) -> None:
        """``model``: empty where it was not found."""
        meter.refused(model)
        if generation.trace is not None:
            generation.trace.end(now_ms(), {"headrace.outcome": "refused"}, error=error.code)
        if self._shown:
            fields: Fields = {
                "request_id": generation.request_id,
                "tenant": generation.tenant,
                "model": model,
                "api": generation.api,
                "priority": generation.priority,
                "outcome": "refused",
                "code": error.code,
                "trace_id": trace_id_of(generation.traceparent) or "",
            }
            log.info("response refused", extra=known(fields))

    def started(self, entry: Entry, message: Started) -> None:
        """A worker has it."""
        if entry.accepted is None:
            return
        if message.attempt > 1:
            TAKEOVERS.labels(model=entry.live.model_name).inc()
        if entry.accepted.trace is not None:
            told: dict[str, str | int] = {
                "headrace.attempt": message.attempt,
                "headrace.worker": message.worker,
            }
            entry.accepted.trace.event("attempt", now_ms(), told)

    def ended(self, entry: Entry) -> None:
        if entry.accepted is None and not entry.had_client:
            return  # it was only looked at
        live, end = entry.live, entry.live.end
        assert end is not None
        if entry.accepted is not None:
            entry.accepted.meter.ended(end, saved_by(live))
        self._trace(entry, live, end)
        if self._shown:
            log.info("response ended", extra=known(self._fields(entry, live, end)))

    def _trace(self, entry: Entry, live: Live, end: Ended) -> None:
        job = live.job
        if entry.accepted is None:
            if self._telemetry is not None:
                told = {"gen_ai.response.id": job.response, "headrace.tenant": job.tenant}
                begun_unix_ms = entry.begun_unix_ms
                span = self._telemetry.begin("follow", "server", begun_unix_ms, told, parent=job.traceparent)
                # when it is known here: it may have ended before, and by the store's clock
                span.end(now_ms(), {"headrace.outcome": end.outcome}, error=end.code)
            return
        trace = entry.accepted.trace
        if trace is None:
            return
        if live.first_text_unix_ms is not None:
            trace.event("first text", live.first_text_unix_ms)
        trace.stage("accept", live.received_unix_ms, live.received_unix_ms + job.edge_ms)
        attributes: dict[str, str | int | tuple[str, ...]] = {
            "gen_ai.request.model": live.model_name,
            "gen_ai.response.model": live.model_name,
            "gen_ai.response.id": job.response,
            "gen_ai.response.finish_reasons": (end.reason or "error",),
            "gen_ai.conversation.id": job.session,
            "gen_ai.usage.input_tokens": end.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": end.usage.completion_tokens,
            "headrace.outcome": end.outcome,
            "headrace.cache": job.presentation.cache,
            "headrace.class": f"{job.priority}/{job.lane}",
            "headrace.attempts": live.log.attempts,
        }
        name = f"{_operation(job.presentation.api)} {live.model_name}"
        trace.end(live.finished_unix_ms or now_ms(), attributes, error=end.code, name=name)

    def _fields(self, entry: Entry, live: Live, end: Ended) -> Fields:
        job, writer = live.job, live.log.last_started
        return {
            "response": job.response,
            "request_id": job.request_id,
            "tenant": job.tenant,
            "session": job.session,
            "model": live.model_name,
            "api": job.presentation.api,
            "priority": job.priority,
            "lane": job.lane,
            "outcome": end.outcome,
            "reason": end.reason or "",
            "code": end.code or "",
            "prompt_tokens": end.usage.prompt_tokens,
            "cached_tokens": end.usage.cached_tokens,
            "completion_tokens": end.usage.completion_tokens,
            "cache": job.presentation.cache,
            **asdict(end.parts),
            "ttft_ms": end.ttft_ms,
            "total_ms": end.total_ms,
            "attempts": live.log.attempts,
            "worker": writer.worker if writer is not None else "",
            "resumed": live.resumed,
            "gateway": self._gateway,
            "accepted_by": job.gateway,
            "trace_id": trace_id_of(job.traceparent) or "",
        }

    async def close(self) -> None:
        if self._telemetry is not None:
            await self._telemetry.close()


def _operation(api: str) -> str:
    """Of OpenTelemetry's conventions for generative AI."""
    return "text_completion" if api == "completions" else "chat"
