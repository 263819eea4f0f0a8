"""Limits, classes and the queue as clients see them: headers, errors, events; and a gateway killed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses import ResponseQueuedEvent
from websockets.sync.client import ClientConnection, connect

from gateway.admission import LIMIT_HEADERS
from schemas.ids import new_response_id
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, gateway, worker

Event = dict[str, Any]


@pytest.fixture
def one_slot(nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path) -> Iterator[None]:
    with worker(nats_server, redis_server, tmp_path, slots=1, inter_token_ms=10, mean_output_tokens=0):
        yield


def events(socket: ClientConnection) -> Iterator[Event]:
    while True:
        yield json.loads(socket.recv(timeout=20))


def create(socket: ClientConnection, max_tokens: int, **more: object) -> None:
    request = {"type": "response.create", "input": "hi", "max_output_tokens": max_tokens, **more}
    socket.send(json.dumps(request))


def until(socket: ClientConnection, kind: str) -> list[Event]:
    seen = []
    for event in events(socket):
        seen.append(event)
        if event["type"] == kind:
            return seen
    raise AssertionError


@pytest.mark.usefixtures("one_slot")
def test_the_queue_is_shown_while_a_response_waits(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    with (
        gateway(nats_server, redis_server, tmp_path) as here,
        connect(f"{here.ws_url}/v1/responses") as socket,
    ):
        create(socket, 30_000)
        running = until(socket, "response.in_progress")
        assert (running[1]["position"], running[1]["eta_ms"]) == (0, 0)
        with connect(f"{here.ws_url}/v1/responses") as other:
            create(other, 30_000)
            waiting = until(other, "response.queued")[-1]
            assert (waiting["position"], waiting["sequence_number"]) == (1, 1)
            with connect(f"{here.ws_url}/v1/responses") as last:
                create(last, 3)
                assert until(last, "response.queued")[-1]["position"] == 2
                other.send(json.dumps({"type": "response.cancel", "response_id": waiting["response"]["id"]}))
                socket.send(
                    json.dumps({"type": "response.cancel", "response_id": running[0]["response"]["id"]})
                )
                rest = until(last, "response.incomplete")
                numbers = [event["sequence_number"] for event in rest]
                assert numbers == sorted(numbers)
                queued = [event for event in rest if event["type"] == "response.queued"]
                assert all(event["sequence_number"] == 1 for event in queued)
                for event in queued:
                    ResponseQueuedEvent.model_validate(event)
                # whoever resumes behind the position gets the rest, once
                resume = {"type": "response.resume", "response_id": rest[-1]["response"]["id"]}
                last.send(json.dumps({**resume, "starting_after": 1}))
                again = until(last, "response.incomplete")
                assert [event["sequence_number"] for event in again[:3]] == [2, 1000, 1001]
                assert again[-1] == rest[-1]


@pytest.mark.usefixtures("one_slot")
def test_limits_are_told_in_headers_and_refusals(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    limits: dict[str, object] = {"requests_per_minute": 3, "tokens_per_minute": 1000}
    with gateway(nats_server, redis_server, tmp_path, limits=limits) as here:
        body = {"input": "hi", "max_output_tokens": 5}
        answer = httpx.post(f"{here.url}/v1/responses", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == "2"
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "994"
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        too_much = httpx.post(f"{here.url}/v1/responses", json={**body, "max_output_tokens": 2000})
        assert too_much.status_code == 429
        assert too_much.json()["error"]["code"] == "rate_limit_exceeded"
        assert "retry-after" not in too_much.headers  # it would never pass
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        for stream in (True, False):
            answer = httpx.post(f"{here.url}/v1/chat/completions", json={**chat, "stream": stream})
            assert answer.status_code == 200
            assert set(LIMIT_HEADERS) <= set(answer.headers)
        refused = httpx.post(f"{here.url}/v1/chat/completions", json=chat)
        assert refused.status_code == 429
        assert "requests per minute" in refused.json()["error"]["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        with connect(f"{here.ws_url}/v1/responses") as socket:
            create(socket, 5)
            error = until(socket, "error")[-1]
            assert error["status"] == 429
            assert error["error"]["headers"]["x-ratelimit-remaining-requests"] == "0"
            assert int(error["error"]["headers"]["retry-after"]) >= 1
        shown = httpx.get(f"{here.url}/metrics").text
        assert 'headrace_gateway_admission_refusals_total{limit="requests"} 2.0' in shown
        assert 'headrace_gateway_admission_refusals_total{limit="tokens"} 1.0' in shown


@pytest.mark.usefixtures("one_slot")
def test_without_limits_no_header_tells_of_any(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    with gateway(nats_server, redis_server, tmp_path) as here:
        for tier, served in (
            (None, "priority"),
            ("default", "default"),
            ("flex", "flex"),
            ("auto", "priority"),
        ):
            body = {"input": "hi", "max_output_tokens": 1, "service_tier": tier}
            answer = httpx.post(f"{here.url}/v1/responses", json=body)
            assert answer.json()["service_tier"] == served
            assert not any(name.startswith("x-ratelimit") for name in answer.headers)
        refused = httpx.post(f"{here.url}/v1/responses", json={"input": "hi", "service_tier": "gold"})
        assert refused.json()["error"]["code"] == "invalid_value"
        with connect(f"{here.ws_url}/v1/responses") as socket:
            missing = {"type": "response.resume", "response_id": new_response_id()}
            socket.send(json.dumps(missing))
            assert "x-ratelimit" not in json.dumps(until(socket, "error")[-1])


@pytest.mark.usefixtures("one_slot")
def test_what_a_killed_gateway_held_is_free_again(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    limits: dict[str, object] = {"concurrent_responses": 1, "lease_s": 2}

    client = httpx.Client(timeout=30)

    def refused(here: Gateway) -> bool:
        answer = client.post(f"{here.url}/v1/responses", json={"input": "hi", "max_output_tokens": 1})
        assert answer.status_code in (200, 429), answer.text
        return answer.status_code == 429

    with gateway(nats_server, redis_server, tmp_path, limits=limits) as survivor:
        one_more = gateway(nats_server, redis_server, tmp_path, limits=limits)
        with one_more as dying, connect(f"{dying.ws_url}/v1/responses") as socket:
            create(socket, 300)
            until(socket, "response.in_progress")
            assert refused(survivor)
            dying.kill()
        give_up = time.monotonic() + 30
        while refused(survivor):
            assert time.monotonic() < give_up
            time.sleep(0.1)
    client.close()
