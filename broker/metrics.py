"""Every metric of Headrace, gateway and worker, in one place, and the small HTTP server that shows a
worker's. Labels are bounded: models that are served, outcomes and codes of closed lists, never an id.
What each tells an operator stands in deploy/METRICS.md.

``observe`` costs 1-2 us: fine once a message, not inside an engine step.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import uvicorn
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from broker.histogram import StepHistogram
from broker.plain_counter import PlainCounter

disable_created_metrics()  # type: ignore[no-untyped-call]  # one line each that no query asks for

# Buckets grow by about 1.5, so that a p99 read from them is off by a quarter at most.
_FIRST_TOKEN_S = (
    *(0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0),
)
_BETWEEN_TOKENS_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
_WHOLE_S = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0),
    *(60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1800.0, 3600.0),
)
_STAGE_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0),
)
_QUEUE_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0),
    *(60.0, 120.0, 300.0, 900.0, 3600.0),
)
_LAG_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0),
)
_ROUND_TRIP_S = (
    *(0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)


class RequestMetrics:
    """The same set of metrics by model, seen from one side. ``outcome`` is completed, incomplete, failed,
    cancelled, refused; on a worker also handed_off and fenced_off. Times are seconds, as Prometheus asks."""

    def __init__(self, side: str, first_token_from: str) -> None:
        name = f"headrace_{side}"
        self.requests = Counter(f"{name}_requests", "Responses ended, by outcome", ["model", "outcome"])
        self.first_token_s = Histogram(
            f"{name}_time_to_first_token_seconds",
            f"TTFT: {first_token_from} to first token",
            ["model"],
            buckets=_FIRST_TOKEN_S,
        )
        self.inter_token_s = StepHistogram(
            f"{name}_inter_token_latency_seconds",
            "ITL: time between tokens; of n tokens that come together, each counts an n-th",
            ["model"],
            buckets=_BETWEEN_TOKENS_S,
        )
        self.end_to_end_s = Histogram(
            f"{name}_end_to_end_latency_seconds",
            f"{first_token_from} to terminal event",
            ["model"],
            buckets=_WHOLE_S,
        )
        self.queue_wait_s = Histogram(
            f"{name}_queue_wait_seconds", "Job stored to job pulled", ["model"], buckets=_QUEUE_S
        )
        self.prompt_tokens = Counter(f"{name}_prompt_tokens", "Tokens in", ["model"])
        self.completion_tokens = Counter(f"{name}_completion_tokens", "Tokens out", ["model"])
        self.running = Gauge(f"{name}_requests_running", "Responses with a writer at work", ["model"])
        self.waiting = Gauge(f"{name}_requests_waiting", "Responses accepted and not started", ["model"])


GATEWAY = RequestMetrics("gateway", "request received")
WORKER = RequestMetrics("worker", "job pulled")

STAGE_S = Histogram(
    "headrace_gateway_stage_seconds",
    "Where the time of ended responses went, by stage: edge, queue, prefill, decode, reconnect (a worker was "
    "replaced), transport; those it had, which add up to its end-to-end latency (gateway/PROTOCOL.md)",
    ["model", "stage"],
    buckets=_STAGE_S,
)

ERRORS = Counter("headrace_errors", "Errors told to clients or written to logs, by code", ["code"])
CONNECTIONS = Gauge("headrace_gateway_connections", "Open client WebSockets")
RESUMES = Counter("headrace_gateway_resumes", "Streams resumed by a client")
TOKENS_UNREAD = Counter(
    "headrace_gateway_tokens_unread", "Tokens of ended responses that no client was given", ["model"]
)
CACHE_LOOKUPS = Counter(
    "headrace_gateway_cache_lookups",
    "Requests that may share an answer, by what was found: hit, joined, miss, unavailable (Redis is away)",
    ["model", "result"],
)
CACHE_STORES = Counter("headrace_gateway_cache_stores", "Answers stored for identical requests")
CACHE_STORED_BYTES = Counter("headrace_gateway_cache_stored_bytes", "Bytes of the answers stored")
CACHE_PARTINGS = Counter(
    "headrace_gateway_cache_partings", "Responses that went on alone because the one they followed did not"
)
REDIS_DEGRADED = Gauge(
    "headrace_gateway_redis_degraded",
    "1 while Redis does not answer: chat has no memory, and tenants' limits count per gateway",
)
REFUSALS = Counter(
    "headrace_gateway_admission_refusals",
    "Requests refused by a limit: requests, tokens, concurrent (of the tenant), queue, deadline, storage",
    ["limit"],
)
ADMITTED = Counter(
    "headrace_gateway_admitted",
    "Requests admitted, by lane (over: above the tenant's share)",
    ["model", "lane"],
)
QUEUE_ESTIMATE = Gauge(
    "headrace_gateway_queue_estimate_seconds",
    "Time until a job that came now would start; looked at while anything waits",
    ["model", "priority", "lane"],
)
STREAM_FILL = Gauge(
    "headrace_gateway_stream_fill_ratio",
    "Of the bytes or messages that a stream may hold, whichever is nearer its limit, 0 to 1",
    ["stream"],
)
STREAM_NEEDED = Gauge(
    "headrace_gateway_stream_needed_seconds",
    "So far a stream must reach back; one that does not, and is 80 % full, refuses requests",
    ["stream"],
)
WORKERS_ALIVE = Gauge(
    "headrace_workers_alive",
    "Workers seen in the last three intervals; of a model without any until it is taken for retired",
    ["model"],
)
SLOTS = Gauge("headrace_worker_slots", "Requests that run at once", ["model"])
KV_CACHE = Gauge("headrace_worker_kv_cache_usage_ratio", "KV cache in use, 0 to 1", ["model"])
WATCHER_VERDICTS = Counter(
    "headrace_gateway_watcher_verdicts",
    "Jobs given to another worker because theirs was found dead or hung",
    ["verdict"],
)
REDELIVERED = Counter(
    "headrace_worker_jobs_redelivered", "Jobs pulled that had been delivered before", ["model"]
)

GATEWAY_READY = Gauge("headrace_gateway_ready", "1 while a chat would be answered: what /readyz says")
CERTIFICATE_EXPIRY = Gauge(
    "headrace_gateway_certificate_expiry_timestamp_seconds",
    "When the TLS certificate that is served ends, unix time; 0: none is",
)
TCP_CONNECTIONS = Gauge("headrace_gateway_tcp_connections", "Open client connections, idle ones too")
STREAMS = Gauge(
    "headrace_gateway_streams",
    "Responses that are being streamed to a client; transport: sse, websocket",
    ["api", "transport"],
)
SENT_MESSAGES = PlainCounter(
    "headrace_gateway_sent_messages", "WebSocket messages, and writes of events over HTTP", ["transport"]
)
SENT_BYTES = PlainCounter("headrace_gateway_sent_bytes", "Bytes of these, without framing", ["transport"])
UPDATES = PlainCounter("headrace_gateway_updates", "Times that a client's reader was given new text")
UPDATE_TOKENS = PlainCounter(
    "headrace_gateway_update_tokens", "Tokens in these; more than one an update have been merged"
)
SLOW_READERS = Gauge("headrace_gateway_slow_readers", "Clients that leave more unread than the kernel takes")
SLOW_READERS_CLOSED = Counter(
    "headrace_gateway_slow_readers_closed", "Clients cut off because they read too slowly"
)
CACHED_PROMPT_TOKENS = Counter(
    "headrace_gateway_cached_prompt_tokens",
    "Prompt tokens that the engine's prefix cache held, of responses that an engine made",
    ["model"],
)
SAVED_TOKENS = Counter(
    "headrace_gateway_saved_tokens",
    "Tokens that no engine had to work for; how: cache, joined; kind: prompt, completion",
    ["model", "how", "kind"],
)
TAKEOVERS = Counter(
    "headrace_gateway_takeovers", "Further workers that took up a response after its first", ["model"]
)

WORKER_READY = Gauge("headrace_worker_ready", "1 while the worker pulls jobs: what /healthz says")
SLOTS_USED = Gauge("headrace_worker_slots_used", "Jobs that hold a slot", ["model"])
ENGINE_STEPS = PlainCounter(
    "headrace_worker_engine_steps", "Engine steps that brought tokens; tokens a step are the batch", ["model"]
)
WORKER_CACHED_PROMPT_TOKENS = Counter(
    "headrace_worker_cached_prompt_tokens", "Prompt tokens found in the engine's prefix cache", ["model"]
)
CONTINUED_TOKENS = Counter(
    "headrace_worker_continued_tokens",
    "Tokens that an earlier worker had made and that were fed to the engine again",
    ["model"],
)
UNSENT_TOKENS = Gauge("headrace_worker_unsent_tokens", "Tokens that wait to be published", ["model"])
UNCONFIRMED_TOKENS = Gauge(
    "headrace_worker_unconfirmed_tokens", "Tokens of running responses not known to be stored", ["model"]
)
TOKENS_ACK_S = Histogram(
    "headrace_worker_tokens_ack_seconds",
    "Tokens published to their ack from the broker, of those messages that ask for one",
    buckets=_ROUND_TRIP_S,
)
ACKS_MISSED = Counter(
    "headrace_worker_acks_missed", "Acks of tokens that did not come, or refused: sent again"
)
RESTARTS = Counter("headrace_worker_restarts", "Restarts of this worker process by its guardian")
ENGINE_START_S = Gauge("headrace_worker_engine_start_seconds", "What the engine took to start", ["model"])
DEAD_LETTERS = Counter("headrace_worker_dead_letters", "Jobs put among the dead letters", ["model", "code"])

# what gateways often, workers seldom, ask the server; the same on all of them: use max, not sum
QUEUE_DEPTH = Gauge(
    "headrace_queue_depth",
    "Jobs that wait to be pulled, over all gateways",
    ["model", "priority", "lane"],
)
QUEUE_RUNNING = Gauge(
    "headrace_queue_running", "Jobs pulled and not acked, over all workers", ["model", "priority", "lane"]
)
QUEUE_OLDEST_AGE_S = Gauge(
    "headrace_queue_oldest_age_seconds",
    "Age of the oldest job that waits to be pulled; 0: none waits",
    ["model", "priority", "lane"],
)
STREAM_BYTES = Gauge("headrace_stream_bytes", "Bytes that a stream holds", ["stream"])
STREAM_MAX_BYTES = Gauge("headrace_stream_max_bytes", "Bytes at which it drops its oldest", ["stream"])
STREAM_MESSAGES = Gauge("headrace_stream_messages", "Messages that a stream holds", ["stream"])
STREAM_MAX_MESSAGES = Gauge(
    "headrace_stream_max_messages", "Messages at which it drops its oldest; absent: no limit", ["stream"]
)
STREAM_OLDEST_AGE_S = Gauge(
    "headrace_stream_oldest_age_seconds",
    "Age of the oldest message that a stream holds: so far it reaches back; 0: it is empty",
    ["stream"],
)
SURVEYED = Gauge(
    "headrace_survey_timestamp_seconds", "When queues and streams were last looked at, unix time"
)

BUILD_INFO = Gauge("headrace_build_info", "1; which part this is, and its version", ["part", "version"])
LOG_RECORDS = Counter("headrace_log_records", "Lines logged", ["level"])
SPANS = Counter(
    "headrace_tracing_spans", "Spans by what became of them: exported, failed, dropped", ["result"]
)

LOOP_LAG = Histogram(
    "headrace_event_loop_lag_seconds",
    "How late the event loop runs what is due, looked at 20 times a second; every stream waits for it",
    buckets=_LAG_S,
)

BROKER_CONNECTED = Gauge("headrace_broker_connected", "1 while the NATS connection is up")
BROKER_RECONNECTS = Counter("headrace_broker_reconnects", "Reconnects to NATS")
BROKER_DROPPED = Counter(
    "headrace_broker_dropped_messages", "Messages the NATS client dropped: read too slowly"
)
BROKER_ROUND_TRIP_S = Histogram(
    "headrace_broker_round_trip_seconds",
    "A question to JetStream and its answer, every few seconds, behind all that waits to be written; without "
    "an answer the 5 s that were waited for it, and so above the highest bucket",
    buckets=_ROUND_TRIP_S,
)
BROKER_PENDING_BYTES = Gauge(
    "headrace_broker_pending_bytes", "Bytes that wait to be written to the NATS connection"
)
BROKER_MESSAGES = PlainCounter("headrace_broker_messages", "NATS messages; direction: in, out", ["direction"])
BROKER_BYTES = PlainCounter("headrace_broker_bytes", "Payload bytes of these", ["direction"])
REDIS_ROUND_TRIP_S = Histogram(
    "headrace_redis_round_trip_seconds",
    "A PING to Redis, every few seconds; without an answer the time that was waited for it",
    buckets=_ROUND_TRIP_S,
)
REDIS_ERRORS = Counter("headrace_redis_errors", "Redis commands that failed or took too long")
PULL_RESETS = Counter("headrace_broker_pull_resets", "Pulls begun anew, by reason", ["reason"])
TAIL_GAPS = Counter("headrace_broker_tail_gaps", "Gaps in the tail that were read again")
UNDECODABLE = Counter(
    "headrace_broker_undecodable_messages", "Stored messages that do not decode", ["stream"]
)
TOKENS_HELD_BACK = Counter("headrace_broker_tokens_held_back", "Token messages not sent while disconnected")


def introduce(part: Literal["gateway", "worker"], version: str) -> None:
    """Once a process: what it is. The other part's metrics are not shown: they would all stand at 0."""
    BUILD_INFO.labels(part=part, version=version).set(1)
    others = "headrace_worker_" if part == "gateway" else "headrace_gateway_"
    for collector in tuple(REGISTRY._collector_to_names):
        names = REGISTRY._collector_to_names[collector]
        if any(name.startswith(others) for name in names):
            REGISTRY.unregister(collector)


def exposition(accept: str) -> tuple[bytes, str]:
    """The body and content type of ``/metrics`` for an Accept header."""
    encode, content_type = choose_encoder(accept)
    return encode(REGISTRY), content_type


class PortUnavailable(Exception):
    """The port to listen on is taken or not allowed. The message is for the operator."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to broker.process


async def serve_http(
    host: str,
    port: int,
    healthz: Callable[[], tuple[bool, str]],
    *,
    on_listening: Callable[[int], None] | None = None,
) -> None:
    """``/healthz`` (200 or 503 with a line of text) and ``/metrics`` until cancelled. ``port`` 0 takes a
    free one; ``on_listening`` is told which. Raises ``PortUnavailable``."""

    async def health(_: Request) -> Response:
        well, text = healthz()
        return PlainTextResponse(text + "\n", status_code=200 if well else 503)

    async def show(request: Request) -> Response:
        body, content_type = exposition(request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    app = Starlette(routes=[Route("/healthz", health), Route("/metrics", show)])
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise PortUnavailable(f"cannot listen on {host}:{port}: {error.strerror}") from None
    with listener:
        if on_listening is not None:
            on_listening(listener.getsockname()[1])
        server = _Server(
            uvicorn.Config(
                app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="metrics-http")
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise
