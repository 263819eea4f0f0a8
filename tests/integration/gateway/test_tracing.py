"""One trace across a gateway and its workers, as a collector sees it: real processes, real OTLP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import msgspec
import pytest
import websockets

from gateway.entry import Entry
from gateway.live import Live
from gateway.records import Records
from gateway.text import Detokenizer
from schemas.config import Logging, Tracing
from schemas.ids import GatewayId
from schemas.reply import Closed
from tests.integration.broker.samples import make_job
from tests.integration.collector import Collector, Seen
from tests.integration.conftest import NatsServer, RedisServer, free_port
from tests.integration.gateway.processes import Gateway, Process, gateway, worker
from tests.process_tree import children
from tests.unit.gateway.tokenizers_built import byte_level

LIMIT_S = 40
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
SECRET = "xylophone-marmalade"
STAGES = ("queue", "engine queue", "prefill", "decode")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector().running() as running:
        yield running


@contextlib.contextmanager
def served(
    nats: NatsServer, redis: RedisServer, folder: Path, endpoint: str, ratio: float = 0, **sim: object
) -> Iterator[tuple[Gateway, Process]]:
    tracing = {"HEADRACE_TRACING__ENDPOINT": endpoint, "HEADRACE_TRACING__SAMPLE_RATIO": str(ratio)}
    with (
        worker(
            nats, redis, folder, tracing, **{"inter_token_ms": 5, "mean_output_tokens": 0, **sim}
        ) as working,
        gateway(nats, redis, folder, extra=tracing) as running,
    ):
        yield running, working


def ask(url: str, traceparent: str | None = None, **body: object) -> httpx.Response:
    headers = {"traceparent": traceparent} if traceparent else {}
    request = {"input": f"tell me of {SECRET}", "max_output_tokens": 20, **body}
    return httpx.post(f"{url}/v1/responses", json=request, headers=headers, timeout=LIMIT_S)


def below(spans: list[Seen], parent: Seen) -> list[Seen]:
    return sorted((span for span in spans if span.parent == parent.span_id), key=lambda span: span.begun_ns)


def test_one_trace_goes_from_the_client_through_gateway_queue_worker_and_engine(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path, collector: Collector
) -> None:
    with served(nats_server, redis_server, tmp_path, collector.url) as (running, _):
        answer = ask(running.url, SAMPLED)
        assert answer.status_code == 200
        collector.until(lambda: bool(collector.spans("chat ") and collector.spans("attempt")))
        spans = collector.spans()
    (root,) = collector.spans("chat headrace-sim")
    assert {span.trace_id for span in spans} == {TRACE}
    assert (root.parent, root.kind, root.service) == (SPAN, "SPAN_KIND_SERVER", "headrace-gateway")
    assert root.attributes["gen_ai.response.id"] == answer.json()["id"]
    assert root.attributes["gen_ai.usage.output_tokens"] == 20
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert root.attributes["headrace.outcome"] == "incomplete"
    assert [name for name, _ in root.events] == ["attempt", "first text"]
    assert [span.name for span in below(spans, root)] == ["accept", "attempt"]
    (attempt,) = collector.spans("attempt")
    assert (attempt.kind, attempt.service) == ("SPAN_KIND_CONSUMER", "headrace-worker")
    assert attempt.instance.startswith("wk")
    assert [span.name for span in below(spans, attempt)] == list(STAGES)
    assert len(spans) == 3 + len(STAGES), "spans are per response, never per token"
    for span in spans:
        assert root.begun_ns - 5_000_000 <= span.begun_ns <= span.ended_ns <= root.ended_ns + 200_000_000
    assert not any(SECRET.encode() in request for request in collector.requests)


def test_what_is_sampled_is_for_the_client_to_say_and_else_for_the_ratio(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path, collector: Collector
) -> None:
    with served(nats_server, redis_server, tmp_path, collector.url, ratio=0) as (running, _):
        assert ask(running.url).status_code == 200
        assert ask(running.url, NOT_SAMPLED).status_code == 200
        assert ask(running.url, SAMPLED).status_code == 200
        collector.until(lambda: bool(collector.spans("chat ") and collector.spans("attempt")))
    assert len(collector.spans("chat ")) == len(collector.spans("attempt")) == 1
    assert {span.trace_id for span in collector.spans()} == {TRACE}


def test_without_a_client_s_trace_it_begins_at_the_gateway_and_a_refusal_is_an_error(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path, collector: Collector
) -> None:
    with served(nats_server, redis_server, tmp_path, collector.url, ratio=1) as (running, _):
        assert ask(running.url).status_code == 200
        refused = ask(running.url, model="no such model")
        assert refused.status_code == 404
        collector.until(lambda: bool(len(collector.spans("chat")) == 2 and collector.spans("attempt")))
    good, bad = sorted(collector.spans("chat"), key=lambda span: span.failed)
    assert good.parent == bad.parent == ""
    assert good.trace_id != bad.trace_id
    assert (bad.failed, bad.attributes["error.type"]) == (True, "model_not_found")
    (attempt,) = collector.spans("attempt")
    assert (attempt.trace_id, attempt.parent) == (good.trace_id, good.span_id)


def test_after_a_kill_the_next_attempt_is_linked_in_the_same_trace(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path, collector: Collector
) -> None:
    with served(nats_server, redis_server, tmp_path, collector.url) as (running, working):
        body = {"input": "a long one", "max_output_tokens": 300, "stream": True}
        headers = {"traceparent": SAMPLED}
        with httpx.stream(
            "POST", f"{running.url}/v1/responses", json=body, headers=headers, timeout=LIMIT_S
        ) as sse:
            lines = sse.iter_lines()
            for line in lines:
                if '"response.output_text.delta"' in line:
                    (pid,) = children(working.pid)
                    os.kill(pid, signal.SIGKILL)
                    break
            assert any('"response.incomplete"' in line for line in lines)
        collector.until(lambda: bool(collector.spans("chat ") and collector.spans("attempt")))
    (root,) = collector.spans("chat ")
    attempts = [told for name, told in root.events if name == "attempt"]
    assert [told["headrace.attempt"] for told in attempts] == [1, 2]
    assert len({told["headrace.worker"] for told in attempts}) == 2
    assert root.attributes["headrace.attempts"] == 2
    (second,) = collector.spans("attempt")  # the first died with its process
    assert (second.trace_id, second.parent) == (TRACE, root.span_id)
    assert second.attributes["headrace.attempt"] == 2
    assert int(str(second.attributes["headrace.prior_tokens"])) > 0
    (link,) = second.links
    assert link not in (root.span_id, second.span_id, SPAN)


class Nobody:
    """Who is told of a response, and does nothing."""

    def told(self, *_: object) -> None: ...

    live_attended = live_deserted = live_stopped = live_started = live_tokens = live_ended = live_left = told


async def test_following_one_that_had_ended_before_takes_no_negative_time(collector: Collector) -> None:
    records = Records(GatewayId("gw-2"), Logging(), Tracing(endpoint=collector.url))
    job = msgspec.structs.replace(make_job(), traceparent=SAMPLED)
    entry = Entry(Live(job, Detokenizer(byte_level()), Nobody()), had_client=True)
    entry.live.feed(1, Closed(reason="cancelled"), stored_unix_ms=entry.begun_unix_ms - 60_000)
    records.ended(entry)
    await records.close()
    (follow,) = collector.spans("follow")
    assert (follow.trace_id, follow.parent) == (TRACE, SPAN)
    assert follow.begun_ns == pytest.approx(entry.begun_unix_ms * 1e6)
    assert follow.ended_ns >= follow.begun_ns


async def test_a_handshake_s_trace_holds_for_the_responses_of_its_socket(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path, collector: Collector
) -> None:
    with served(nats_server, redis_server, tmp_path, collector.url) as (running, _):
        headers = {"traceparent": SAMPLED}
        url = f"{running.ws_url}/v1/responses"
        async with (
            asyncio.timeout(LIMIT_S),
            websockets.connect(url, additional_headers=headers) as connection,
        ):
            for _ in range(2):
                create = {"type": "response.create", "input": "hi", "max_output_tokens": 3}
                await connection.send(json.dumps(create))
            for _ in range(2):
                while json.loads(await connection.recv())["type"] != "response.incomplete":
                    pass
        await asyncio.to_thread(collector.until, lambda: len(collector.spans("attempt")) == 2)
        await asyncio.to_thread(collector.until, lambda: len(collector.spans("chat ")) == 2)
    assert {(span.trace_id, span.parent) for span in collector.spans("chat ")} == {(TRACE, SPAN)}


@pytest.mark.parametrize("dead", ["refuses", "hangs", "is not there"])
def test_a_dead_collector_costs_spans_and_nothing_else(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path, collector: Collector, dead: str
) -> None:
    with contextlib.ExitStack() as stack:
        endpoint = collector.url
        if dead == "refuses":
            collector.status = 400
        elif dead == "hangs":
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        else:
            endpoint = f"http://127.0.0.1:{free_port()}"
        running, working = stack.enter_context(
            served(nats_server, redis_server, tmp_path, endpoint, ratio=1, inter_token_ms=0)
        )
        for _ in range(20):
            assert ask(running.url).status_code == 200
        running.terminate()
        begun_s = time.monotonic()
        assert running.wait(20) == 0
        working.terminate()
        assert working.wait(20) == 0
        assert time.monotonic() - begun_s < 15, "it is given a second or two, not the exporter's patience"
    for part in (running, working):
        assert "Traceback" not in part.output
        assert part.output.count("takes no spans") <= 1
        if dead == "refuses":
            assert part.output.count("takes no spans") == 1


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    """redis-py looks for OpenTelemetry's metrics by itself, wherever that is installed."""
    program = (
        "import sys, gateway.main, workers.main, deploy.gateways, workers.engine.sim;"
        "from schemas.config import Config; from broker.telemetry import telemetry_of;"
        "assert telemetry_of(Config().tracing, 'gateway', 'gw-1') is None;"
        "ours = ('opentelemetry.sdk.trace', 'opentelemetry.exporter', 'broker.spans');"
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(find_spec("rotel") is None, reason="rotel, a collector, is not installed")
def test_a_collector_of_others_takes_them_and_gives_them_on(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path, collector: Collector
) -> None:
    with (
        rotel(tmp_path, forward_to=collector.url) as url,
        served(nats_server, redis_server, tmp_path, url) as (running, _),
    ):
        assert ask(running.url, SAMPLED).status_code == 200
        collector.until(lambda: bool(collector.spans("chat ") and collector.spans("attempt")))
    (root,), (attempt,) = collector.spans("chat "), collector.spans("attempt")
    assert (root.trace_id, root.parent, attempt.parent) == (TRACE, SPAN, root.span_id)
    assert len(below(collector.spans(), attempt)) == len(STAGES)


@contextlib.contextmanager
def rotel(folder: Path, *, forward_to: str) -> Iterator[str]:
    """Streamfold's collector; what it takes it sends on."""
    spec = find_spec("rotel")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).with_name("rotel-agent")
    port = free_port()
    arguments = (
        "--otlp-http-endpoint",
        f"127.0.0.1:{port}",
        "--otlp-grpc-endpoint",
        f"127.0.0.1:{free_port()}",
    )
    arguments += ("--exporter", "otlp", "--otlp-exporter-protocol", "http", "--batch-timeout", "100ms")
    with (folder / "rotel.log").open("wb") as out:
        process = subprocess.Popen(
            [program, "start", *arguments, "--otlp-exporter-endpoint", forward_to], stdout=out, stderr=out
        )
    try:
        give_up_s = time.monotonic() + LIMIT_S
        while True:
            assert process.poll() is None, (folder / "rotel.log").read_text()
            assert time.monotonic() < give_up_s
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
