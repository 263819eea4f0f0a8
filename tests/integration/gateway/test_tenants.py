"""Two tenants on one gateway: whatever one of them makes, the other cannot tell from what does not exist."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import websockets

from broker.connection import Broker
from broker.jobs import find_job
from schemas.ids import ResponseId, new_response_id
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.credentials import LIMIT_S, bearer, command_of, until_status
from tests.integration.gateway.processes import Gateway, Process, gateway

GOOD: dict[str, Any] = {"input": "hello", "max_output_tokens": 4}
LONG: dict[str, Any] = {**GOOD, "max_output_tokens": 4000}


@pytest.fixture(scope="module")
def guarded(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    sim_worker: Process,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(shared_nats_server, shared_redis_server, folder, {"methods": "keys"}) as running:
        yield running


@pytest.fixture(scope="module")
def keys(shared_nats_server: NatsServer) -> tuple[str, str]:
    create = command_of(shared_nats_server)
    return create("create", "acme", "--quiet"), create("create", "globex", "--quiet")


Client = Callable[..., Any]


@pytest.fixture
async def acme(guarded: Gateway, keys: tuple[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    await until_status(guarded, keys[0], 200)
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(keys[0]), timeout=LIMIT_S) as client:
        yield client


@pytest.fixture
async def globex(guarded: Gateway, keys: tuple[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    await until_status(guarded, keys[1], 200)
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(keys[1]), timeout=LIMIT_S) as client:
        yield client


async def made(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await client.post("/v1/responses", json={**GOOD, **more})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert isinstance(body, dict)
    return body


async def running(guarded: Gateway, key: str) -> tuple[websockets.ClientConnection, str]:
    """A response that goes on for a while."""
    connection = await websockets.connect(f"{guarded.ws_url}/v1/responses", additional_headers=bearer(key))
    await connection.send(json.dumps({"type": "response.create", **LONG}))
    created = json.loads(await connection.recv())
    return connection, created["response"]["id"]


def shape(answer: httpx.Response, response_id: str) -> tuple[int, str, list[str]]:
    """All that a client is shown, but for the id that it named itself."""
    return answer.status_code, answer.text.replace(response_id, "ID"), sorted(answer.headers)


ASKED: list[tuple[str, str]] = [
    ("GET", "/v1/responses/{}"),
    ("GET", "/v1/responses/{}?stream=true"),
    ("POST", "/v1/responses/{}/cancel"),
]


@pytest.mark.parametrize(("method", "path"), ASKED)
async def test_anothers_response_is_as_if_it_were_not(
    guarded: Gateway,
    keys: tuple[str, str],
    acme: httpx.AsyncClient,
    globex: httpx.AsyncClient,
    method: str,
    path: str,
) -> None:
    ended = (await made(acme))["id"]
    connection, live = await running(guarded, keys[0])
    async with connection:
        none = new_response_id()
        expected = shape(await globex.request(method, path.format(none)), none)
        assert expected[0] == 404
        for theirs in (ended, live):
            assert shape(await globex.request(method, path.format(theirs)), theirs) == expected
        assert (await acme.get(f"/v1/responses/{live}")).json()["status"] == "in_progress"
        await acme.post(f"/v1/responses/{live}/cancel")


@pytest.mark.parametrize("kind", ["response.resume", "response.cancel"])
async def test_nor_is_it_there_over_a_socket(guarded: Gateway, keys: tuple[str, str], kind: str) -> None:
    connection, live = await running(guarded, keys[0])
    async with (
        connection,
        websockets.connect(f"{guarded.ws_url}/v1/responses", additional_headers=bearer(keys[1])) as other,
    ):
        told = []
        for response_id in (live, new_response_id()):
            await other.send(json.dumps({"type": kind, "response_id": response_id}))
            told.append((await other.recv()).replace(response_id, "ID"))
        assert told[0] == told[1]
        assert json.loads(told[0])["error"]["code"] == "response_not_found"
        await connection.send(json.dumps({"type": "response.cancel", "response_id": live}))
        async with asyncio.timeout(LIMIT_S):
            while json.loads(await connection.recv())["type"] != "response.incomplete":
                pass


async def test_nothing_can_be_continued_from_it(
    guarded: Gateway, keys: tuple[str, str], acme: httpx.AsyncClient, globex: httpx.AsyncClient
) -> None:
    """While it runs, either: a conversation's own next turn is told to wait then."""
    ended = (await made(acme))["id"]
    connection, live = await running(guarded, keys[0])
    async with connection:
        told = set()
        for response_id in (ended, live, new_response_id()):
            asked = {**GOOD, "previous_response_id": response_id}
            told.add(shape(await globex.post("/v1/responses", json=asked), response_id)[:2])
        assert len(told) == 1
        assert "previous_response_not_found" in told.pop()[1]
        own = await acme.post("/v1/responses", json={**GOOD, "previous_response_id": live})
        assert own.json()["error"]["code"] == "conversation_busy"
        await acme.post(f"/v1/responses/{live}/cancel")


async def test_the_same_idempotency_key_is_two_requests(
    acme: httpx.AsyncClient, globex: httpx.AsyncClient
) -> None:
    header = {"idempotency-key": "order-1"}
    first = await acme.post("/v1/responses", json=GOOD, headers=header)
    again = await acme.post("/v1/responses", json=GOOD, headers=header)
    other = await globex.post("/v1/responses", json={**GOOD, "input": "something else"}, headers=header)
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert other.status_code == 200


async def test_the_same_conversation_is_two_conversations(
    acme: httpx.AsyncClient, globex: httpx.AsyncClient
) -> None:
    first = await made(acme, conversation="support")
    second = await made(acme, conversation="support")
    other = await made(globex, conversation="support")
    prompt = [body["usage"]["input_tokens"] for body in (first, second, other)]
    assert prompt[0] == prompt[2] < prompt[1]


async def test_the_same_user_is_two_users(acme: httpx.AsyncClient, globex: httpx.AsyncClient) -> None:
    """The simulated engine answers by all that was said before."""
    question = {"user_id": "u1", "query": "hello"}
    first, second = [(await acme.post("/chat", json=question)).json()["response"] for _ in range(2)]
    other = (await globex.post("/chat", json=question)).json()["response"]
    assert first == other != second


async def test_the_engine_and_the_subjects_keep_them_apart(
    acme: httpx.AsyncClient, globex: httpx.AsyncClient, shared_nats_server: NatsServer
) -> None:
    ids = [(await made(client, conversation="one"))["id"] for client in (acme, acme, globex)]
    broker = await Broker.connect(shared_nats_server.config, name="test")
    try:
        jobs = [await find_job(broker, ResponseId(response)) for response in ids]
    finally:
        await broker.close()
    assert [job.tenant for job in jobs if job is not None] == ["acme", "acme", "globex"]
    salts = [job.cache_salt for job in jobs if job is not None]
    sessions = [job.session for job in jobs if job is not None]
    assert salts[0] == salts[1] != salts[2]
    assert sessions[0] == sessions[1] != sessions[2]
    assert not {"acme", "globex"} & {*salts, *sessions}
