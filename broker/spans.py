"""Spans over OpenTelemetry's SDK, sent to a collector as OTLP over HTTP in batches, by a thread of its own.
The only module that imports OpenTelemetry; it is imported where tracing is on.

What waits is bounded: at the bound new spans are dropped and counted, so that a collector that is slow or
dead costs memory for ``QUEUE_SPANS`` and nothing else. Headers, certificates, timeout and compression of the
exporter and further resource attributes are OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_HEADERS, …).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from broker.metrics import SPANS
from broker.settings import masked_urls
from broker.telemetry import Attributes, Part
from schemas.config import Tracing

log = logging.getLogger(__name__)

QUEUE_SPANS = 4096  # about 2 KB each
BATCH_SPANS = 256  # encoding one takes the interpreter for a few milliseconds
EVERY_MS = 1000
CLOSE_S = 2.0
TRACES_PATH = "/v1/traces"
LIMITS = SpanLimits(max_span_attributes=32, max_events=32, max_links=4, max_span_attribute_length=512)
_KINDS = {"server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER}


class OtlpTelemetry:
    """A ``Telemetry``."""

    def __init__(self, config: Tracing, part: Part, instance: str) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # a line a batch; _Told says it once
        base = config.endpoint.rstrip("/")
        url = base if base.endswith(TRACES_PATH) else base + TRACES_PATH
        self._waiting = _Waiting()
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
            resource=_resource(part, instance),
            span_limits=LIMITS,
            shutdown_on_exit=False,
        )
        exporter = _Told(OTLPSpanExporter(url), masked_urls(url), self._waiting)
        self._provider.add_span_processor(_Bounded(exporter, self._waiting))
        self._tracer = self._provider.get_tracer("headrace", version("headrace"))

    def begin(
        self,
        name: str,
        kind: Literal["server", "consumer"],
        from_unix_ms: float,
        attributes: Attributes,
        *,
        parent: str | None,
        link: str | None = None,
    ) -> OtlpTrace:
        linked = context_of(link)
        span = self._tracer.start_span(
            name,
            _below(context_of(parent)),
            _KINDS[kind],
            attributes,
            links=[Link(linked)] if linked is not None else None,
            start_time=_ns(from_unix_ms),
        )
        return OtlpTrace(self._tracer, span)

    async def close(self) -> None:
        ending = threading.Thread(target=self._provider.shutdown, name="end-tracing", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, CLOSE_S)


class OtlpTrace:
    """A ``Trace``."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"

    def event(self, name: str, at_unix_ms: float, attributes: Attributes | None = None) -> None:
        self._span.add_event(name, attributes, _ns(at_unix_ms))

    def stage(self, name: str, from_unix_ms: float, to_unix_ms: float) -> None:
        if self._span.is_recording():
            above = _below(self._span.get_span_context())
            span = self._tracer.start_span(name, above, start_time=_ns(from_unix_ms))
            span.end(_ns(to_unix_ms))

    def end(
        self, at_unix_ms: float, attributes: Attributes, *, error: str | None = None, name: str | None = None
    ) -> None:
        self._span.set_attributes(attributes)
        if name is not None:
            self._span.update_name(name)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(_ns(at_unix_ms))


def context_of(traceparent: str | None) -> SpanContext | None:
    """None where it names no span (https://www.w3.org/TR/trace-context/)."""
    if traceparent is None:
        return None
    version_, trace_id, span_id, flags = traceparent.split("-")[:4]
    context = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    return context if context.is_valid and version_ != "ff" else None


def _below(context: SpanContext | None) -> Context:
    empty = Context()  # never what happens to be current
    return empty if context is None else trace.set_span_in_context(NonRecordingSpan(context), empty)


def _ns(unix_ms: float) -> int:
    return int(unix_ms * 1_000_000)


def _resource(part: Part, instance: str) -> Resource:
    own = {"service.version": version("headrace"), "service.instance.id": instance}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        own["service.name"] = f"headrace-{part}"
    return Resource.create(own)


class _Waiting:
    """Spans taken from the event loop and not handed over: each number has one thread that writes it."""

    def __init__(self) -> None:
        self.taken = 0
        self.handed = 0

    def __len__(self) -> int:
        return self.taken - self.handed


class _Bounded(BatchSpanProcessor):
    def __init__(self, exporter: SpanExporter, waiting: _Waiting) -> None:
        super().__init__(exporter, QUEUE_SPANS, EVERY_MS, BATCH_SPANS)
        self._waiting = waiting

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if len(self._waiting) >= QUEUE_SPANS:
            SPANS.labels(result="dropped").inc()
            return
        self._waiting.taken += 1
        super().on_end(span)


class _Told(SpanExporter):
    """Counts, and says once when the collector is lost or found. In the exporting thread."""

    def __init__(self, exporter: SpanExporter, url: str, waiting: _Waiting) -> None:
        self._exporter = exporter
        self._url = url
        self._waiting = waiting
        self._lost = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._waiting.handed += len(spans)
            lost = result is not SpanExportResult.SUCCESS
            SPANS.labels(result="failed" if lost else "exported").inc(len(spans))
            if lost and not self._lost:
                log.warning("the collector at %s takes no spans: they are lost until it does", self._url)
            elif self._lost and not lost:
                log.info("the collector at %s takes spans again", self._url)
            self._lost = lost
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
