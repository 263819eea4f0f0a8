"""Whatever is sent, the answer is a coded error that says what to change, and everything lives on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import nats
import pytest
import websockets

from schemas.errors import ERRORS
from tests.e2e.stack import Stack, is_ready

GOOD = {"type": "response.create", "input": "hello", "max_output_tokens": 4}
VOCABULARY = 1 << 24  # beyond any model's


class Socket:
    def __init__(self, connection: websockets.ClientConnection) -> None:
        self.connection = connection

    async def error(self, frame: str | bytes | dict[str, Any]) -> dict[str, Any]:
        """Send, and return the coded error that must come back."""
        await self.connection.send(json.dumps(frame) if isinstance(frame, dict) else frame)
        event = await self.event()
        assert event["type"] == "error", event
        body: dict[str, Any] = event["error"]
        spec = ERRORS[body["code"]]
        assert event["status"] == spec.http_status
        assert body["type"] == spec.type
        assert len(body["message"]) > 10
        assert "Traceback" not in body["message"]
        return body

    async def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(await asyncio.wait_for(self.connection.recv(), 20))
        return event

    async def answer(self) -> dict[str, Any]:
        """A whole good response on this same connection: it lives on."""
        await self.connection.send(json.dumps(GOOD))
        while (event := await self.event())["type"] not in ("response.completed", "response.incomplete"):
            assert event["type"].startswith("response."), event
        return event


@pytest.fixture
async def socket(stack: Stack) -> AsyncIterator[Socket]:
    url = stack.url.replace("http", "ws", 1) + "/v1/responses"
    async with websockets.connect(url, max_size=None, open_timeout=20) as connection:
        yield Socket(connection)


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("", "invalid_json", None),
        ("[1,2]", "invalid_request", None),
        ("null", "invalid_request", None),
        ("[" * 100_000, "invalid_json", None),
        ('{"type":"response.create","input":"\\ud800"}', "invalid_json", None),
        (b"\xff\xfe\x00", "invalid_encoding", None),
        (b"\x81\xa4type\xaf", "invalid_encoding", None),  # MessagePack is not spoken here
        ({"type": "response.destroy"}, "unknown_event", "type"),
        ({"input": "hi"}, "unknown_event", "type"),
        ({**GOOD, "temprature": 1}, "unknown_parameter", "temprature"),
        ({**GOOD, "model": "gpt-99"}, "model_not_found", "model"),
        ({**GOOD, "temperature": "hot"}, "invalid_value", "temperature"),
        ({**GOOD, "temperature": 99}, "invalid_value", "temperature"),
        ({**GOOD, "top_p": 0}, "invalid_value", "top_p"),
        ({**GOOD, "max_output_tokens": 4.5}, "invalid_value", "max_output_tokens"),
        ({**GOOD, "max_output_tokens": -1}, "invalid_value", "max_output_tokens"),
        ({**GOOD, "seed": "x"}, "invalid_value", "seed"),
        ({**GOOD, "seed": 1 << 70}, "invalid_value", "seed"),
        ({**GOOD, "input": 7}, "invalid_value", "input"),
        ({**GOOD, "input": [{"role": "wizard", "content": "x"}]}, "invalid_value", "input[0].role"),
        ({**GOOD, "stop_token_ids": [VOCABULARY]}, "invalid_token_id", "stop_token_ids"),
        ({**GOOD, "logit_bias": {str(VOCABULARY): 1}}, "invalid_token_id", "logit_bias"),
        ({**GOOD, "previous_response_id": "resp_x"}, "previous_response_not_found", "previous_response_id"),
        ({**GOOD, "tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
        ({"type": "response.cancel", "response_id": "resp_nope"}, "response_not_found", "response_id"),
    ],
)
async def test_websocket_refuses_and_lives_on(
    socket: Socket, frame: str | bytes | dict[str, Any], code: str, param: str | None
) -> None:
    error = await socket.error(frame)
    assert (error["code"], error["param"]) == (code, param)
    assert (await socket.answer())["response"]["usage"]["output_tokens"] == 4


@pytest.mark.parametrize(
    ("size", "code"), [(1 << 20, "payload_too_large"), (200_000, "context_length_exceeded")]
)
async def test_websocket_refuses_what_is_too_long(socket: Socket, size: int, code: str) -> None:
    error = await socket.error({**GOOD, "input": "x" * size})
    assert error["code"] == code
    await socket.answer()


async def test_a_text_frame_that_is_not_utf8_ends_the_connection_as_rfc_6455_says(stack: Stack) -> None:
    """The frame's opcode promises UTF-8, so this one case cannot live on; the gateway does."""
    url = stack.url.replace("http", "ws", 1) + "/v1/responses"
    async with websockets.connect(url) as connection:
        await connection.send(b"\xff\xfe", text=True)
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await asyncio.wait_for(connection.recv(), 20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007
    assert is_ready(stack.url)


async def test_a_frame_beyond_the_protocol_limit_closes_1009(stack: Stack) -> None:
    url = stack.url.replace("http", "ws", 1) + "/v1/responses"
    async with websockets.connect(url, max_size=None) as connection:
        sending = asyncio.create_task(connection.send("x" * (17 << 20)), name="a long frame")
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await asyncio.wait_for(connection.recv(), 20)
        await asyncio.wait({sending})
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    assert is_ready(stack.url)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/chat"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"nonsense":1}', 400),
        (b"x" * (2 << 20), 413),
    ],
)
async def test_http_refuses_in_openais_shape(stack: Stack, path: str, body: bytes, status: int) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert ERRORS[error["code"]].http_status == status
    assert error["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/chat", 405)])
async def test_http_errors_of_the_framework_have_the_same_shape(
    stack: Stack, method: str, path: str, status: int
) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert ERRORS[answer.json()["error"]["code"]].http_status == status


async def test_a_job_that_is_no_job_is_buried_and_the_worker_lives_on(stack: Stack) -> None:
    """Malformed MessagePack straight into the queue, by someone with the nats command."""
    worker = stack.part("worker")
    client = await nats.connect(stack.nats_url)
    try:
        buried = await client.subscribe("hr.dead.>")
        async with httpx.AsyncClient(base_url=stack.url) as http:
            model = (await http.get("/v1/models")).json()["data"][0]["token"]
        await client.jetstream().publish(
            f"hr.job.{model}.interactive.fair.resp_01JD0000000000000000000000", b"\xc1 not a job"
        )
        letter = await buried.next_msg(timeout=20)
    finally:
        await client.close()
    assert b"invalid_job" in letter.data
    async with httpx.AsyncClient(base_url=stack.url) as http:
        answer = await http.post("/chat", json={"user_id": "u", "query": "still there?"}, timeout=30)
    assert answer.status_code == 200
    assert stack.part("worker") == worker
