"""The surfaces below the SDK: raw frames, bad input, clients that vanish or do not read, and a shutdown."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, Process, gateway

LIMIT_S = 30
GOOD: dict[str, Any] = {"type": "response.create", "input": "hello", "max_output_tokens": 4}
ENDINGS = ("response.completed", "response.incomplete", "response.failed", "error")


@pytest.fixture
async def http(served: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=LIMIT_S) as client:
        yield client


async def ask(connection: websockets.ClientConnection, frame: object) -> dict[str, Any]:
    """Send, and read until the error or the end that answers it."""
    await connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))
    async with asyncio.timeout(LIMIT_S):
        while (event := json.loads(await connection.recv()))["type"] not in ENDINGS:
            assert event["type"].startswith("response.")
    assert isinstance(event, dict)
    return event


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[" * 50_000, "invalid_json", None),
        ("null", "invalid_request", None),
        (b"\xff\xfe", "invalid_encoding", None),
        ({"type": "response.destroy"}, "unknown_event", "type"),
        ({"type": {"a": 1}}, "unknown_event", "type"),
        ({**GOOD, "temprature": 1}, "unknown_parameter", "temprature"),
        ({**GOOD, "temperature": "x"}, "invalid_value", "temperature"),
        ('{"type":"response.create","input":"x","temperature":NaN}', "invalid_json", None),
        ({**GOOD, "model": "none"}, "model_not_found", "model"),
        ({**GOOD, "stop_token_ids": [1 << 24]}, "invalid_token_id", "stop_token_ids"),
        ({**GOOD, "logit_bias": {str(1 << 24): 1}}, "invalid_token_id", "logit_bias"),
        ({**GOOD, "input": "x " * 200_000}, "context_length_exceeded", "input"),
        ({**GOOD, "input": "x" * (1 << 20)}, "payload_too_large", None),
        ({"type": "response.cancel", "response_id": "resp_nope"}, "response_not_found", "response_id"),
        ({"type": "response.resume", "response_id": "resp_nope"}, "response_not_found", "response_id"),
        ({"type": "ping", "payload": 1}, "unknown_parameter", "payload"),
    ],
)
async def test_a_bad_frame_is_answered_and_the_connection_lives_on(
    served: Gateway, frame: object, code: str, param: str | None
) -> None:
    async with websockets.connect(f"{served.ws_url}/v1/responses") as connection:
        refused = await ask(connection, frame)
        assert (refused["error"]["code"], refused["error"]["param"]) == (code, param)
        answer = await ask(connection, GOOD)
        assert answer["response"]["usage"]["output_tokens"] == 4


async def test_an_error_names_the_event_it_answers(served: Gateway) -> None:
    async with websockets.connect(f"{served.ws_url}/v1/responses") as connection:
        refused = await ask(connection, {**GOOD, "n": 2, "event_id": "e1", "stream_id": "s1"})
        assert (refused["event_id"], refused["stream_id"]) == ("e1", "s1")
        await connection.send(b'{"type":"ping","event_id":"e2"}')
        assert json.loads(await connection.recv()) == {"type": "pong", "event_id": "e2"}


async def test_a_connection_has_only_so_many_responses(served: Gateway) -> None:
    async with websockets.connect(f"{served.ws_url}/v1/responses") as connection:
        for _ in range(8):
            await connection.send(json.dumps({**GOOD, "max_output_tokens": 4000}))
        refused = await ask(connection, GOOD)
        assert refused["error"]["code"] == "too_many_responses"
        assert refused["status"] == 429
        assert refused["error"]["headers"] == {"retry-after": "1"}


async def test_a_frame_beyond_the_protocol_limit_closes_1009(served: Gateway) -> None:
    async with websockets.connect(f"{served.ws_url}/v1/responses", max_size=None) as connection:
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await ask(connection, "x" * (17 << 20))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_a_text_frame_that_is_not_utf8_ends_only_its_connection(served: Gateway) -> None:
    """RFC 6455 demands the end; nothing of it is a fault of ours that belongs into the log."""
    async with websockets.connect(f"{served.ws_url}/v1/responses") as connection:
        await connection.send(b"\xff\xfe", text=True)
        assert [message async for message in closing(connection)] == []
        assert connection.close_code == 1007
    assert "Traceback" not in served.output


async def test_sockets_elsewhere_are_refused_in_the_handshake(served: Gateway) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{served.ws_url}/nowhere")
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body)["error"]["message"]


@pytest.mark.parametrize("origin", ["http://evil.example", "http://["])
async def test_a_page_from_elsewhere_is_told_that_it_may_not_connect(served: Gateway, origin: str) -> None:
    async with websockets.connect(
        f"{served.ws_url}/v1/responses", additional_headers={"Origin": origin}
    ) as connection:
        (told,) = [json.loads(message) async for message in closing(connection)]
    assert (told["type"], told["error"]["code"]) == ("error", "forbidden")
    assert (connection.close_code, connection.close_reason) == (4403, told["error"]["message"])
    assert "Traceback" not in served.output


async def test_the_simple_chat_remembers_each_user(served: Gateway, http: httpx.AsyncClient) -> None:
    question = {"user_id": "ada", "query": "my name is Ada"}
    answer = (await http.post("/chat", json=question)).json()
    assert set(answer) == {"user_id", "query", "response", "latency_ms"}
    assert answer["response"]
    assert answer["latency_ms"] > 0
    async with websockets.connect(f"{served.ws_url}/ws/chat") as connection:
        for query in ("one", "two"):
            await connection.send(json.dumps({"user_id": "bob", "query": query}))
        await connection.send("{")
        answers = [json.loads(await connection.recv()) for _ in range(3)]
        assert [a["query"] for a in answers if "query" in a] == ["one", "two"]
        assert [a["error"]["code"] for a in answers if "error" in a] == ["invalid_json"]


async def test_a_client_that_left_is_given_up_after_the_grace_time(
    served: Gateway, http: httpx.AsyncClient
) -> None:
    long = {**GOOD, "max_output_tokens": 5000}
    async with websockets.connect(f"{served.ws_url}/v1/responses") as connection:
        await connection.send(json.dumps(long))
        by_socket = json.loads(await connection.recv())["response"]["id"]
    del long["type"]
    async with http.stream("POST", "/v1/responses", json={**long, "stream": True}) as stream:
        by_stream = stream.headers["x-request-id"]
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/responses", json={**long, "input": "hung up"}, timeout=0.3)
    for response in (by_socket, by_stream):
        async with asyncio.timeout(LIMIT_S):
            while (held := (await http.get(f"/v1/responses/{response}")).json())["status"] == "in_progress":
                await asyncio.sleep(0.05)
        assert held["status"] == "cancelled"
    async with asyncio.timeout(LIMIT_S):
        while await running_now(http):
            await asyncio.sleep(0.05)


async def test_a_question_whose_client_left_is_cancelled_at_once(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, sim_worker: Process, tmp_path: Path
) -> None:
    """Long before the grace time."""
    settings = {"disconnect_grace_s": 600, "default_max_tokens": 20_000}
    with gateway(shared_nats_server, shared_redis_server, tmp_path, **settings) as patient:
        async with httpx.AsyncClient(base_url=patient.url) as http, asyncio.timeout(LIMIT_S):
            question = {"user_id": "left", "query": "a long one"}
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/chat", json=question, timeout=0.5)
            async with websockets.connect(f"{patient.ws_url}/ws/chat") as connection:
                await connection.send(json.dumps({**question, "user_id": "left too"}))
                while await running_now(http) == 0:
                    await asyncio.sleep(0.02)
            while await running_now(http):
                await asyncio.sleep(0.05)
        assert "Traceback" not in patient.output


async def test_a_response_of_another_gateway_can_be_cancelled(
    served: Gateway, impatient: Gateway, http: httpx.AsyncClient
) -> None:
    for cancel_over in ("socket", "request"):
        async with (
            websockets.connect(f"{impatient.ws_url}/v1/responses") as owner,
            asyncio.timeout(LIMIT_S),
        ):
            await owner.send(json.dumps({**GOOD, "max_output_tokens": 5000}))
            response = json.loads(await owner.recv())["response"]["id"]
            if cancel_over == "socket":
                async with websockets.connect(f"{served.ws_url}/v1/responses") as stranger:
                    await stranger.send(json.dumps({"type": "response.cancel", "response_id": response}))
                    last = await ending(owner)
            else:
                answer = await http.post(f"/v1/responses/{response}/cancel")
                assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
                last = await ending(owner)
        assert last["response"]["status"] == "cancelled"


async def test_a_post_repeated_under_its_key_is_one_response(
    served: Gateway, http: httpx.AsyncClient
) -> None:
    body = {"input": "only once", "max_output_tokens": 20}
    key = {"idempotency-key": f"key {served.port}"}
    first, second = await asyncio.gather(*(http.post("/v1/responses", json=body, headers=key) for _ in "ab"))
    assert first.status_code == second.status_code == 200
    assert first.json()["id"] == second.json()["id"]
    assert first.json()["output"] == second.json()["output"]
    other = await http.post("/v1/responses", json={**body, "input": "another"}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    chat = {"messages": [{"role": "user", "content": "only once"}], "max_tokens": 5}
    ids = [
        (await http.post("/v1/chat/completions", json=chat, headers={"idempotency-key": "chat"})).json()["id"]
        for _ in range(2)
    ]
    assert ids[0] == ids[1] != first.json()["id"]
    for wrong, headers, param in (
        ({**body, "idempotency_key": "k"}, {}, "idempotency_key"),
        (body, {"idempotency-key": ""}, "idempotency_key"),
        (body, {"idempotency-key": "k" * 257}, "idempotency_key"),
    ):
        refused = await http.post("/v1/responses", json=wrong, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def ending(connection: websockets.ClientConnection) -> dict[str, Any]:
    while (event := json.loads(await connection.recv()))["type"] not in ENDINGS:
        pass
    assert isinstance(event, dict)
    return event


async def running_now(http: httpx.AsyncClient) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith("headrace_gateway_requests_running{"))


def stalled_socket(port: int) -> socket.socket:
    """Asks for more than its window holds, and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    body = json.dumps({**GOOD, "max_output_tokens": 20_000}).encode()
    connection.sendall(bytes([0x81, 0x80 | len(body)]) + b"\0\0\0\0" + body)
    return connection


@pytest.fixture(scope="module")
def impatient(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    sim_worker: Process,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("impatient")
    settings = {"ping_interval_s": 0.2, "ping_timeout_s": 1, "disconnect_grace_s": 0.2}
    with gateway(shared_nats_server, shared_redis_server, folder, **settings) as running:
        yield running


async def test_who_reads_nothing_is_cut_off_and_others_notice_nothing(impatient: Gateway) -> None:
    stalled = [stalled_socket(impatient.port) for _ in range(4)]
    try:
        async with (
            httpx.AsyncClient(base_url=impatient.url, timeout=LIMIT_S) as http,
            websockets.connect(f"{impatient.ws_url}/v1/responses") as connection,
            asyncio.timeout(LIMIT_S),
        ):
            while await open_sockets(http) < 5:
                await asyncio.sleep(0.05)
            while await open_sockets(http) > 1:
                answer = await ask(connection, GOOD)
                assert answer["type"] == "response.incomplete"
                await asyncio.sleep(0.05)
    finally:
        for each in stalled:
            each.close()


async def test_a_stream_that_waits_says_so(impatient: Gateway) -> None:
    """About a second of prefill, and a comment for every 0.2 s of silence in it."""
    body = {"input": "x " * 8_000, "max_output_tokens": 1, "stream": True}
    async with httpx.AsyncClient(base_url=impatient.url, timeout=LIMIT_S) as http:
        text = (await http.post("/v1/responses", json=body)).text
    created, rest = text.split("\n\n", 1)
    assert created.startswith("event: response.created\n")
    assert rest.count(": waiting\n\n") >= 1
    assert rest.rstrip().rsplit("\n\n", 1)[-1].startswith("event: response.incomplete\n")


async def open_sockets(http: httpx.AsyncClient) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return next(float(x.split()[-1]) for x in lines if x.startswith("headrace_gateway_connections "))


async def closing(connection: websockets.ClientConnection) -> AsyncIterator[str | bytes]:
    with contextlib.suppress(websockets.ConnectionClosedError):
        while True:
            yield await connection.recv()


async def test_a_drain_whose_time_is_up_tells_clients_over_http_to_come_back(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, sim_worker: Process, tmp_path: Path
) -> None:
    long = {**GOOD, "max_output_tokens": 8000, "ignore_eos": True}
    long.pop("type", None)
    with gateway(shared_nats_server, shared_redis_server, tmp_path, drain_s=0.5) as leaving:
        async with httpx.AsyncClient(base_url=leaving.url) as http, asyncio.timeout(LIMIT_S):

            async def ask_all() -> str:
                asked = asyncio.create_task(http.post("/v1/responses", json=long))
                async with http.stream("POST", "/v1/responses", json={**long, "stream": True}) as answer:
                    lines = answer.aiter_lines()
                    while "output_text.delta" not in await anext(lines):
                        pass
                    leaving.terminate()
                    streamed = [line async for line in lines]
                assert [line for line in streamed if line.startswith("event: ")][-1] == "event: error"
                refused = await asked
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                return str(refused.json()["error"]["code"])

            assert await ask_all() == "going_away"
        assert leaving.wait() == 0, leaving.output
        assert "Traceback" not in leaving.output


async def test_a_shutdown_is_announced_and_finishes_what_runs(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, sim_worker: Process, tmp_path: Path
) -> None:
    with gateway(shared_nats_server, shared_redis_server, tmp_path, drain_s=15) as leaving:
        async with (
            websockets.connect(f"{leaving.ws_url}/v1/responses") as connection,
            websockets.connect(f"{leaving.ws_url}/ws/chat") as idle,
            httpx.AsyncClient(base_url=leaving.url) as http,
            asyncio.timeout(LIMIT_S),
        ):
            await connection.send(json.dumps({**GOOD, "max_output_tokens": 400}))
            assert json.loads(await connection.recv())["type"] == "response.created"
            leaving.terminate()
            notice = json.loads(await idle.recv())
            assert notice["type"] == "session.going_away"
            assert 10_000 < notice["time_left_ms"] <= 15_000  # a busy machine takes a moment to say it
            assert (await http.get("/readyz")).status_code == 503
            assert (await http.get("/healthz")).status_code == 200
            async with websockets.connect(f"{leaving.ws_url}/v1/responses") as late:
                greeted = json.loads(await late.recv())
            assert greeted["type"] == "session.going_away"
            assert 0 < greeted["time_left_ms"] < 15_000
            refused = await http.post("/chat", json={"user_id": "u", "query": "late"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "going_away")
            assert refused.headers["retry-after"] == "1"
            events = [json.loads(message) async for message in closing(connection)]
            assert events[-1]["type"] == "response.incomplete"
            assert events[-1]["response"]["usage"]["output_tokens"] == 400
            assert [message async for message in closing(idle)] == []
            assert (connection.close_code, idle.close_code) == (1012, 1012)
        assert leaving.wait() == 0, leaving.output
        assert "Traceback" not in leaving.output
