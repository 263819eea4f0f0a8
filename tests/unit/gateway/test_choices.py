"""Sibling responses: accepted together or not at all, and given up together."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import httpx
import msgspec
import pytest

from gateway.api.app import build
from gateway.api.front import Front
from gateway.generation import Generation
from gateway.live import Live
from gateway.pipeline import Pipeline
from schemas import reply
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.ids import Fence, ResponseId, TenantId, WorkerId, new_response_id
from schemas.reply import Failed, Finished, Tokens, Usage
from tests.unit.gateway.test_live import make

AT = 1_800_000_000_000.0  # when a message was stored
HOST = "127.0.0.1:8080"
IDS = (70, 71, 72)
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "n": 3}


class Siblings:
    """What the surfaces ask of the pipeline, for responses whose logs the test writes."""

    def __init__(self) -> None:
        self.lives: list[Live] = []
        self.asked: list[Generation] = []
        self.cancelled: list[ResponseId] = []
        self.refuse_from = 99

    async def submit(self, generation: Generation) -> Live:
        self.asked.append(generation)
        number = len(self.asked)
        await asyncio.sleep(0)
        if number >= self.refuse_from:
            raise HeadraceError("context_length_exceeded", "too long", param="input")
        live, _ = make()
        digest = "d" if generation.idempotency_key else ""
        live.job = msgspec.structs.replace(
            live.job, response=new_response_id(), request_digest=digest, model_name=f"model-{number}"
        )
        live.feed(1, reply.Started(attempt=1, worker=WorkerId("w")), AT)
        live.feed(2, Tokens(fence=Fence(1), offset=0, ids=IDS[:2]), AT)
        self.lives.append(live)
        return live

    async def cancel(self, response: ResponseId, tenant: TenantId) -> None:
        self.cancelled.append(response)
        live = next(live for live in self.lives if live.response_id == response)
        live.feed(3, reply.Closed(reason="cancelled"), AT)

    def end(self, live: Live) -> None:
        usage = Usage(prompt_tokens=3, completion_tokens=3)
        live.feed(4, Finished(fence=Fence(1), total=3, reason="stop", ids=IDS, usage=usage), AT)


@pytest.fixture
def pipeline() -> Siblings:
    return Siblings()


def app(pipeline: Siblings) -> Any:
    return build(Front(cast(Pipeline, pipeline), Gateway()))


def client(pipeline: Siblings) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app(pipeline)), base_url=f"http://{HOST}")


async def until_asked(pipeline: Siblings, count: int) -> None:
    async with asyncio.timeout(10):
        while len(pipeline.lives) < count:
            await asyncio.sleep(0)


class Caller:
    """One request on the ASGI side of the server, whose client may hang up."""

    def __init__(self, pipeline: Siblings, body: dict[str, Any], **headers: str) -> None:
        self.sent: list[bytes] = []
        self._gone = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", HOST.encode()), *((k.encode(), v.encode()) for k, v in headers.items())],
        }
        self.running = asyncio.create_task(app(pipeline)(scope, self._receive, self._send), name="app")

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message.get("body", b""))

    async def hang_up(self) -> None:
        self._gone.set()
        async with asyncio.timeout(10):
            await self.running


async def test_all_answer_in_one(pipeline: Siblings) -> None:
    async with client(pipeline) as http:
        answering = asyncio.create_task(http.post("/v1/chat/completions", json={**CHAT, "seed": 5}))
        await until_asked(pipeline, 3)
        for live in reversed(pipeline.lives):
            pipeline.end(live)
        answer = await answering
    assert [c["index"] for c in answer.json()["choices"]] == [0, 1, 2]
    assert answer.json()["usage"]["completion_tokens"] == 9
    assert answer.headers["x-request-id"] in {live.response_id for live in pipeline.lives}
    assert [g.sampling.seed for g in pipeline.asked] == [5, 6, 7]
    assert pipeline.cancelled == []


async def test_one_model_answers_all_and_the_longest_prompt_chooses_it(pipeline: Siblings) -> None:
    body = {"model": "auto", "prompt": ["short", "as long as none of them", "brief"], "n": 2}
    async with client(pipeline) as http:
        answering = asyncio.create_task(http.post("/v1/completions", json=body))
        await until_asked(pipeline, 6)
        for live in pipeline.lives:
            pipeline.end(live)
        answer = await answering
    assert [g.messages[0].content for g in pipeline.asked].index("as long as none of them") == 0
    assert [g.routed and g.routed[0] for g in pipeline.asked] == [None, *["model-1"] * 5]
    assert {g.model for g in pipeline.asked} == {"auto"}
    assert [c["index"] for c in answer.json()["choices"]] == [0, 1, 2, 3, 4, 5]


async def test_refused_as_a_whole(pipeline: Siblings) -> None:
    pipeline.refuse_from = 3
    async with client(pipeline) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["param"] == "messages"
    assert set(pipeline.cancelled) == {live.response_id for live in pipeline.lives}
    assert all(live.end is not None for live in pipeline.lives)


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_fails_ends_all(pipeline: Siblings, stream: bool) -> None:
    async with client(pipeline) as http:
        answering = asyncio.create_task(http.post("/v1/chat/completions", json={**CHAT, "stream": stream}))
        await until_asked(pipeline, 3)
        pipeline.end(pipeline.lives[0])
        pipeline.lives[1].feed(3, Failed(fence=Fence(1), code="engine_failed", message="it died"), AT)
        answer = await answering
    assert pipeline.cancelled == [pipeline.lives[2].response_id]
    if stream:
        assert answer.text.count("data: [DONE]") == 1
        assert '"code":"engine_failed"' in answer.text
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_gives_up_all(pipeline: Siblings, stream: bool) -> None:
    caller = Caller(pipeline, {**CHAT, "stream": stream})
    await until_asked(pipeline, 3)
    pipeline.end(pipeline.lives[0])
    await caller.hang_up()
    assert set(pipeline.cancelled) == {live.response_id for live in pipeline.lives[1:]}


async def test_what_may_be_asked_for_again_goes_on(pipeline: Siblings) -> None:
    caller = Caller(pipeline, CHAT, **{"idempotency-key": "k"})
    await until_asked(pipeline, 3)
    await caller.hang_up()
    assert pipeline.cancelled == []
    assert [g.idempotency_key for g in pipeline.asked] == ["k", "k\n1", "k\n2"]
