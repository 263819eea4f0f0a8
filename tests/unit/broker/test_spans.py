from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from broker import spans
from broker.settings import ConfigError, load
from broker.spans import OtlpTelemetry, context_of
from broker.telemetry import telemetry_of, trace_id_of
from schemas.config import Tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Exporter(SpanExporter):
    """Takes nothing until it may."""

    def __init__(self, *_: object) -> None:
        self.taken: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    exporter = Exporter()
    monkeypatch.setattr(spans, "OTLPSpanExporter", lambda url: exporter)
    monkeypatch.setattr(spans, "EVERY_MS", 3_600_000)  # handed over at the end
    return exporter


def telemetry(ratio: float = 1.0) -> OtlpTelemetry:
    return OtlpTelemetry(Tracing(endpoint="http://collector:4318", sample_ratio=ratio), "gateway", "gw-1")


@pytest.mark.parametrize(
    ("flags", "ratio", "sampled"), [("01", 0.0, True), ("00", 1.0, False), ("03", 0.0, True)]
)
async def test_the_parent_s_flag_says_whether_it_is_sampled(
    exporter: Exporter, flags: str, ratio: float, sampled: bool
) -> None:
    tracing = telemetry(ratio)
    trace = tracing.begin("chat", "server", 1000, {}, parent=f"00-{TRACE}-{SPAN}-{flags}")
    assert trace.traceparent.startswith(f"00-{TRACE}-")
    assert SPAN not in trace.traceparent
    assert trace.traceparent.endswith("-01" if sampled else "-00")
    trace.stage("accept", 1000, 1001)
    trace.end(2000, {})
    await tracing.close()
    assert [span.name for span in exporter.taken] == (["accept", "chat"] if sampled else [])


async def test_times_parents_links_and_errors_are_told(exporter: Exporter) -> None:
    tracing = telemetry()
    other = f"00-{TRACE}-{SPAN}-01"
    trace = tracing.begin("attempt", "consumer", 1000.25, {"a": 1}, parent=None, link=other)
    trace.event("first", 1500, {"b": "c"})
    trace.stage("prefill", 1100, 1200.5)
    trace.end(2000, {"d": ("e",)}, error="poison", name="better")
    await tracing.close()
    stage, whole = exporter.taken
    assert stage.context is not None
    assert whole.context is not None
    assert trace.traceparent == f"00-{whole.context.trace_id:032x}-{whole.context.span_id:016x}-01"
    assert stage.parent is not None
    assert stage.parent.span_id == whole.context.span_id
    assert (whole.name, whole.start_time, whole.end_time) == ("better", 1_000_250_000, 2_000_000_000)
    assert (stage.start_time, stage.end_time) == (1_100_000_000, 1_200_500_000)
    assert whole.attributes == {"a": 1, "d": ("e",), "error.type": "poison"}
    assert [f"{link.context.span_id:016x}" for link in whole.links] == [SPAN]
    assert not whole.status.is_ok
    assert whole.resource.attributes["service.name"] == "headrace-gateway"
    assert whole.resource.attributes["service.instance.id"] == "gw-1"


async def test_what_waits_is_bounded_and_what_is_dropped_is_counted(
    exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "QUEUE_SPANS", 8)
    monkeypatch.setattr(spans, "BATCH_SPANS", 8)
    monkeypatch.setattr(exporter, "export", lambda batch: SpanExportResult.FAILURE)
    tracing = telemetry()
    held = tracing._waiting
    held.taken = 8  # what the collector has not taken
    dropped = spans.SPANS.labels(result="dropped")._value.get()
    for _ in range(3):
        tracing.begin("chat", "server", 1000, {}, parent=None).end(2000, {})
    assert spans.SPANS.labels(result="dropped")._value.get() == dropped + 3
    assert len(held) == 8
    held.handed = 8
    tracing.begin("chat", "server", 1000, {}, parent=None).end(2000, {})
    assert len(held) == 1
    failed = spans.SPANS.labels(result="failed")._value.get()
    await tracing.close()
    assert len(held) == 0
    assert spans.SPANS.labels(result="failed")._value.get() == failed + 1


@pytest.mark.parametrize("nobody", [None, f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"])
def test_a_traceparent_that_names_no_span_is_no_parent(nobody: str | None) -> None:
    assert context_of(nobody) is None


def test_off_is_the_default_and_an_address_turns_it_on() -> None:
    assert telemetry_of(Tracing(), "gateway", "gw-1") is None
    assert load(None, {"HEADRACE_TRACING__ENDPOINT": "http://c:4318"}).tracing.endpoint == "http://c:4318"
    with pytest.raises(ConfigError, match="TRACING__ENDPOINT"):
        load(None, {"HEADRACE_TRACING__ENDPOINT": "collector:4318"})


def test_a_trace_s_id() -> None:
    assert trace_id_of(f"00-{TRACE}-{SPAN}-01") == TRACE
    assert trace_id_of(None) is None
