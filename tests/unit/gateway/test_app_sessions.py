"""The surfaces above a pipeline of one response: what becomes of requests, refusals, faults and a drain."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest

from gateway.api.app import build
from gateway.api.front import Front
from gateway.generation import Generation
from gateway.live import Live
from gateway.pipeline import Pipeline
from schemas import reply
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.ids import Fence, ResponseId, TenantId, WorkerId
from schemas.reply import Finished, Started, Tokens, Usage
from tests.unit.gateway.test_live import make

AT = 1_800_000_000_000.0  # when a message was stored
HOST = "127.0.0.1:8080"
IDS = (70, 71, 72)


class OneResponse:
    """What the surfaces ask of the pipeline, for a response whose log the test writes. Its ways to fail
    are not to be had from a real one at will; the real one is in ``tests/integration``."""

    def __init__(self) -> None:
        self.live, _ = make()
        self.live.feed(1, Started(attempt=1, worker=WorkerId("w")), AT)
        self.live.feed(2, Tokens(fence=Fence(1), offset=0, ids=IDS[:2]), AT)
        self.refusal: Exception | None = None
        self.cancelled: list[ResponseId] = []
        self.may_cancel = asyncio.Event()
        self.may_cancel.set()

    def end(self) -> None:
        self.live.feed(3, Tokens(fence=Fence(1), offset=2, ids=IDS[2:]), AT)
        usage = Usage(prompt_tokens=3, completion_tokens=3)
        self.live.feed(4, Finished(fence=Fence(1), total=3, reason="stop", ids=IDS, usage=usage), AT)

    async def submit(self, generation: Generation) -> Live:
        if self.refusal is not None:
            raise self.refusal
        return self.live

    async def attach(self, response: ResponseId, tenant: TenantId) -> Live:
        if isinstance(self.refusal, ArithmeticError):
            raise self.refusal
        return self.live

    async def cancel(self, response: ResponseId, tenant: TenantId) -> None:
        await self.may_cancel.wait()
        if isinstance(self.refusal, HeadraceError):
            raise self.refusal
        self.cancelled.append(response)
        self.live.feed(3, reply.Closed(reason="cancelled"), AT)

    async def drain(self) -> None:
        pass


class Wire:
    """A WebSocket's client, on the ASGI side of the server."""

    def __init__(self, front: Front, path: str = "/v1/responses", origin: str = f"http://{HOST}") -> None:
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_app.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", HOST.encode()), (b"origin", origin.encode())],
            "subprotocols": ["first", "second"],
        }
        app: Any = build(front)
        self.running = asyncio.create_task(app(scope, self._to_app.get, self._from_app.put), name="app")

    async def message(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            return await self._from_app.get()

    async def event(self) -> dict[str, Any]:
        message = await self.message()
        if message["type"] == "websocket.accept":
            assert message["subprotocol"] == "first"
            message = await self.message()
        assert message["type"] == "websocket.send", message
        event: dict[str, Any] = json.loads(message["text"])
        return event

    async def until(self, kind: str) -> list[str]:
        """The types of the events up to that one."""
        kinds: list[str] = []
        while not kinds or kinds[-1] != kind:
            kinds.append((await self.event())["type"])
        return kinds

    def say(self, **event: Any) -> None:
        self._to_app.put_nowait({"type": "websocket.receive", "text": json.dumps(event)})

    async def hang_up(self) -> None:
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": 1006})
        async with asyncio.timeout(10):
            await self.running


@pytest.fixture
def pipeline() -> OneResponse:
    return OneResponse()


@pytest.fixture
def front(pipeline: OneResponse) -> Front:
    return Front(cast(Pipeline, pipeline), Gateway(max_responses_per_connection=2))


@pytest.fixture
async def http(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(cast(Any, build(front)))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
        yield client


async def test_a_drain_waits_for_who_resumed(pipeline: OneResponse, front: Front) -> None:
    wire = Wire(front)
    wire.say(type="response.resume", response_id=pipeline.live.response_id)
    await wire.until("response.output_text.delta")
    draining = asyncio.create_task(front.drain(), name="drain")
    assert await wire.event() == {"type": "session.going_away", "time_left_ms": 20_000}
    pipeline.end()
    assert "response.output_text.delta" in await wire.until("response.completed")
    assert (await wire.message())["code"] == 1012
    await draining
    await wire.hang_up()


async def test_who_connects_during_a_drain_is_told_at_once(pipeline: OneResponse, front: Front) -> None:
    with front.answering():
        draining = asyncio.create_task(front.drain(), name="drain")
        await asyncio.sleep(0)
        for path in ("/v1/responses", "/ws/chat"):
            wire = Wire(front, path)
            notice = await wire.event()
            assert notice["type"] == "session.going_away"
            assert 0 < notice["time_left_ms"] <= 20_000
    await draining
    assert (await wire.message())["code"] == 1012


@pytest.mark.parametrize(
    ("limits", "origin", "code", "close"),
    [
        ({}, "http://evil.example", "forbidden", 4403),
        ({}, "http://[", "forbidden", 4403),
        ({"max_connections": 1}, f"http://{HOST}", "too_many_connections", 1013),
    ],
)
async def test_a_socket_that_is_refused_is_told_why(
    pipeline: OneResponse, limits: dict[str, Any], origin: str, code: str, close: int
) -> None:
    front = Front(cast(Pipeline, pipeline), Gateway(**limits))
    with front.connected():
        wire = Wire(front, origin=origin)
        told = await wire.event()
        closed = await wire.message()
    assert (told["type"], told["error"]["code"]) == ("error", code)
    assert (closed["code"], closed["reason"]) == (close, told["error"]["message"])
    await wire.running


async def test_a_listed_origin_may_open_a_socket(pipeline: OneResponse) -> None:
    limits = Gateway(allowed_origins=("https://chat.example.com",))
    wire = Wire(Front(cast(Pipeline, pipeline), limits), origin="https://chat.example.com")
    wire.say(type="ping")
    assert await wire.event() == {"type": "pong"}
    await wire.hang_up()


async def test_a_bug_ends_only_the_request_that_met_it(
    pipeline: OneResponse, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(front)
    pipeline.refusal = ZeroDivisionError("a bug")
    for kind in ("response.resume", "response.create"):
        params = {"input": "x"} if kind == "response.create" else {"response_id": pipeline.live.response_id}
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            wire.say(type=kind, event_id="e", **params)
            told = await wire.event()
        assert (told["error"]["code"], told["event_id"]) == ("internal_error", "e")
        (record,) = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[1] is pipeline.refusal
    wire.say(type="ping")
    assert await wire.event() == {"type": "pong"}
    await wire.hang_up()


async def test_a_cancel_that_waits_holds_nothing_up(pipeline: OneResponse, front: Front) -> None:
    """And there are only so many of them."""
    pipeline.may_cancel.clear()
    wire = Wire(front)
    cancel = {"type": "response.cancel", "response_id": pipeline.live.response_id}
    for n in range(3):
        wire.say(**cancel, event_id=f"c{n}")
    refused = await wire.event()
    assert (refused["error"]["code"], refused["event_id"]) == ("too_many_responses", "c2")
    wire.say(type="ping")
    assert await wire.event() == {"type": "pong"}
    pipeline.refusal = HeadraceError("response_not_found", "There is no such response.")
    pipeline.may_cancel.set()
    told = await wire.event()
    assert (told["error"]["code"], told["error"]["param"]) == ("response_not_found", "response_id")
    await wire.hang_up()


async def test_a_cancel_over_http_is_answered_with_the_end(
    pipeline: OneResponse, http: httpx.AsyncClient
) -> None:
    path = f"/v1/responses/{pipeline.live.response_id}/cancel"
    answer = await http.post(path)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    pipeline.refusal = HeadraceError("response_not_found", "There is no such response.")
    for refused in (await http.post(path), await http.post("/v1/responses/resp_nope/cancel")):
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "response_id")


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/v1/responses"])
async def test_one_answer_whose_client_hung_up_is_cancelled_at_once(
    pipeline: OneResponse, front: Front, path: str
) -> None:
    """The client never learns the id, so nobody could come back to it."""
    body = {
        "/chat": {"user_id": "u", "query": "q"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "q"}]},
        "/v1/responses": {"input": "q"},
    }[path]
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False},
        {"type": "http.disconnect"},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", HOST.encode())],
    }
    app: Any = build(front)
    async with asyncio.timeout(10):
        await app(scope, receive, send)
    assert pipeline.cancelled == [pipeline.live.response_id]
    assert sent[0]["status"] == 499


async def test_a_question_whose_socket_closed_is_cancelled_at_once(
    pipeline: OneResponse, front: Front
) -> None:
    wire = Wire(front, "/ws/chat")
    wire.say(user_id="u", query="q")
    async with asyncio.timeout(10):
        while not pipeline.live.attended:
            await asyncio.sleep(0)
    await wire.hang_up()
    assert pipeline.cancelled == [pipeline.live.response_id]


@pytest.mark.parametrize(
    ("path", "body", "params"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "q"}]},
            {"input": "messages", "max_output_tokens": "max_tokens", "model": "model"},
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "q"}], "max_completion_tokens": 9},
            {"max_output_tokens": "max_completion_tokens"},
        ),
        ("/chat", {"user_id": "u", "query": "q"}, {"input": "query"}),
        ("/v1/responses", {"input": "q"}, {"input": "input", "max_output_tokens": "max_output_tokens"}),
    ],
)
async def test_a_refusal_names_the_field_as_its_api_does(
    pipeline: OneResponse,
    http: httpx.AsyncClient,
    path: str,
    body: dict[str, Any],
    params: dict[str, str],
) -> None:
    for inside, outside in params.items():
        pipeline.refusal = HeadraceError("context_length_exceeded", "Too long.", param=inside)
        error = (await http.post(path, json=body)).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", outside)


async def test_a_socket_always_streams(front: Front) -> None:
    wire = Wire(front)
    wire.say(type="response.create", input="x", stream=False)
    told = await wire.event()
    assert (told["error"]["code"], told["error"]["param"]) == ("unsupported_parameter", "stream")
    await wire.hang_up()


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("include=message.output_text.logprobs", "unsupported_parameter", "include"),
        ("include[]=message.output_text.logprobs", "unsupported_parameter", "include"),
        ("stream=true&include_obfuscation=true", "unsupported_parameter", "include_obfuscation"),
        ("starting_after=5", "invalid_request", "starting_after"),
        ("stream=true&starting_after=-2", "invalid_value", "starting_after"),
        ("stream=true&starting_after=x", "invalid_value", "starting_after"),
        ("stream=maybe", "invalid_value", "stream"),
        ("steam=true", "unknown_parameter", "steam"),
    ],
)
async def test_no_query_parameter_is_ignored(
    pipeline: OneResponse, http: httpx.AsyncClient, query: str, code: str, param: str
) -> None:
    error = (await http.get(f"/v1/responses/{pipeline.live.response_id}?{query}")).json()["error"]
    assert (error["code"], error["param"]) == (code, param)


async def test_a_response_is_retrieved_or_followed(pipeline: OneResponse, http: httpx.AsyncClient) -> None:
    path = f"/v1/responses/{pipeline.live.response_id}"
    held = (await http.get(f"{path}?include_obfuscation=false&stream=false")).json()
    assert held["status"] == "in_progress"
    pipeline.end()
    followed = await http.get(f"{path}?stream=true&starting_after=2000&include_obfuscation=false")
    assert "event: response.output_text.delta" in followed.text
    assert "response.created" not in followed.text
