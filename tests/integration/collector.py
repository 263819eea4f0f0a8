"""A collector that takes OTLP over HTTP and keeps the spans: a real server, and OpenTelemetry's messages."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

LIMIT_S = 30.0


@dataclass(frozen=True)
class Seen:
    """A span as it arrived. Ids are hexadecimal; ``parent`` is empty for a root."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    kind: str
    begun_ns: int
    ended_ns: int
    attributes: dict[str, object]
    events: tuple[tuple[str, dict[str, object]], ...]
    links: tuple[str, ...]
    failed: bool
    service: str
    instance: str


class Collector:
    """``requests``: as they came, whole. ``status`` other than 200 refuses what comes."""

    def __init__(self) -> None:
        self.status = 200
        self.requests: list[bytes] = []
        self._spans: list[Seen] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, name="collector")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self, name: str = "") -> list[Seen]:
        return [span for span in tuple(self._spans) if span.name.startswith(name)]

    def until(self, there: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + LIMIT_S
        while not there():
            assert time.monotonic() < give_up_s, [span.name for span in self._spans]
            time.sleep(0.05)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
                    self.send_error(404)
                    return
                if collector.status == 200:
                    collector.take(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(collector.status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def take(self, body: bytes) -> None:
        self.requests.append(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _plain(group.resource.attributes)
            for scope in group.scope_spans:
                self._spans += [_seen(span, resource) for span in scope.spans]

    @contextlib.contextmanager
    def running(self) -> Iterator[Collector]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def _seen(span: Span, resource: dict[str, object]) -> Seen:
    return Seen(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=Span.SpanKind.Name(span.kind),
        begun_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        attributes=_plain(span.attributes),
        events=tuple((event.name, _plain(event.attributes)) for event in span.events),
        links=tuple(link.span_id.hex() for link in span.links),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        service=str(resource["service.name"]),
        instance=str(resource["service.instance.id"]),
    )


def _plain(pairs: Iterator[KeyValue]) -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
