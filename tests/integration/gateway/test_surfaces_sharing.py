"""A shared answer as clients see it: headers, usage, events; and a worker that dies under all who share."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, Process, gateway, worker
from tests.process_tree import children

LIMIT_S = 60
ASKED: dict[str, Any] = {"input": "the same", "max_output_tokens": 20, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharing")


@pytest.fixture(scope="module")
def engine(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, folder: Path
) -> Iterator[Process]:
    with worker(
        shared_nats_server, shared_redis_server, folder, inter_token_ms=20, mean_output_tokens=0
    ) as running:
        yield running


@pytest.fixture(scope="module")
def gateways(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, engine: Process, folder: Path
) -> Iterator[tuple[Gateway, Gateway]]:
    servers = (shared_nats_server, shared_redis_server)
    with gateway(*servers, folder, cache=True) as one, gateway(*servers, folder, cache=True) as other:
        yield one, other


async def post(at: Gateway, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=at.url, timeout=LIMIT_S) as client:
        return await client.post(path, json=body, headers=headers)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


async def test_a_hit_says_so_everywhere(gateways: tuple[Gateway, Gateway]) -> None:
    one, other = gateways
    first = await post(one, "/v1/responses", ASKED)
    assert (first.status_code, first.headers["x-headrace-cache"]) == (200, "miss")
    assert first.json()["cache_status"] == "miss"
    async with asyncio.timeout(LIMIT_S):  # it is stored a moment after its end
        while (second := await post(other, "/v1/responses", ASKED)).headers["x-headrace-cache"] != "hit":
            await asyncio.sleep(0.05)
    body = second.json()
    assert body["output"][0]["content"] == first.json()["output"][0]["content"]
    assert body["id"] != first.json()["id"]
    assert body["cache_status"] == "hit"
    assert body["usage"]["input_tokens_details"]["cached_tokens"] == body["usage"]["input_tokens"] > 0
    assert body["timings"]["queue_ms"] == body["timings"]["prefill_ms"] == 0 < body["timings"]["edge_ms"]
    async with httpx.AsyncClient(base_url=one.url, timeout=LIMIT_S) as client:
        kept = (await client.get(f"/v1/responses/{body['id']}")).json()
    assert (kept["output"], kept["usage"], kept["cache_status"]) == (body["output"], body["usage"], "hit")


async def test_a_hit_streams_with_the_numbers_of_any_other(gateways: tuple[Gateway, Gateway]) -> None:
    one, other = gateways
    asked = {**ASKED, "input": "in pieces"}
    await post(one, "/v1/responses", asked)
    streamed = await post(other, "/v1/responses", {**asked, "stream": True})
    assert streamed.headers["x-headrace-cache"] in ("hit", "joined")
    numbers = {event["type"]: event["sequence_number"] for event in events(streamed)}
    assert numbers["response.created"] == 0
    assert numbers["response.output_item.added"] == 1000
    assert numbers["response.output_text.done"] == 21_001
    assert numbers["response.incomplete"] == 21_004


async def test_chat_completions_share_with_responses(gateways: tuple[Gateway, Gateway]) -> None:
    one, other = gateways
    await post(one, "/v1/responses", {**ASKED, "input": "chat"})
    asked = {"messages": [{"role": "user", "content": "chat"}], "max_tokens": 20, "temperature": 0}
    chat = await post(other, "/v1/chat/completions", asked)
    assert chat.headers["x-headrace-cache"] in ("hit", "joined")
    usage = chat.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"]
    streamed = await post(other, "/v1/chat/completions", {**asked, "stream": True})
    assert streamed.headers["x-headrace-cache"] in ("hit", "joined")
    text = "".join(choice["delta"].get("content", "") for e in events(streamed) for choice in e["choices"])
    assert text == chat.json()["choices"][0]["message"]["content"]
    own = await post(other, "/v1/chat/completions", asked, **{"cache-control": "no-store"})
    assert "x-headrace-cache" not in own.headers


@pytest.mark.parametrize(
    ("change", "headers", "status"),
    [
        ({"cache": "off"}, {}, None),
        ({}, {"cache-control": "no-store"}, None),
        ({"temperature": 1}, {}, None),
        ({"temperature": 1, "cache": "on"}, {}, "miss"),
        ({"include": ["message.output_text.logprobs"]}, {}, None),
    ],
)
async def test_who_asks_not_to_share(
    gateways: tuple[Gateway, Gateway], change: dict[str, Any], headers: dict[str, str], status: str | None
) -> None:
    one, _ = gateways
    await post(one, "/v1/responses", ASKED)
    answer = await post(one, "/v1/responses", {**ASKED, **change}, **headers)
    assert answer.status_code == 200
    assert answer.headers.get("x-headrace-cache") == status
    assert answer.json()["cache_status"] == (status or "none")


async def test_what_cache_may_say(gateways: tuple[Gateway, Gateway]) -> None:
    answer = await post(gateways[0], "/v1/responses", {**ASKED, "cache": "always"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cache")


async def test_a_worker_killed_under_a_leader_breaks_nobodys_answer(
    gateways: tuple[Gateway, Gateway], engine: Process
) -> None:
    asked = {**ASKED, "input": "to be killed", "max_output_tokens": 120}
    asking = [asyncio.create_task(post(at, "/v1/responses", asked)) for at in (*gateways, *gateways)]
    alone = await post(gateways[0], "/v1/responses", {**ASKED, "input": "meanwhile", "max_output_tokens": 20})
    assert alone.status_code == 200
    for child in children(engine.pid):
        os.kill(child, signal.SIGKILL)
    answers = await asyncio.gather(*asking)
    assert sorted(answer.headers["x-headrace-cache"] for answer in answers) == ["joined"] * 3 + ["miss"]
    undisturbed = await post(gateways[1], "/v1/responses", {**asked, "cache": "off"})
    texts = {answer.json()["output"][0]["content"][0]["text"] for answer in (*answers, undisturbed)}
    assert len(texts) == 1
