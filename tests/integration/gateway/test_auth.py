"""Who is let in, on a real gateway with keys made by the command: keys, tokens, JWTs, and their ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.auth.jwks import Jwks
from gateway.client import Client, ResponseError
from schemas.errors import HeadraceError
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.credentials import (
    ISSUER,
    LIMIT_S,
    Issuer,
    bearer,
    command_of,
    status,
    until_status,
)
from tests.integration.gateway.processes import Gateway, Process, gateway

PAGE = "https://chat.example.com"
GOOD: dict[str, Any] = {"input": "hello", "max_output_tokens": 4}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    running = Issuer()
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def guarded(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    sim_worker: Process,
    issuer: Issuer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    auth = {
        "methods": "keys,jwt",
        "jwt_keys": issuer.url,
        "jwt_issuer": ISSUER,
        "jwt_audience": "headrace",
        "failures_per_minute": 200,
    }
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(
        shared_nats_server,
        shared_redis_server,
        folder,
        auth,
        limits={"requests_per_minute": 1000},
        allowed_origins=PAGE,
        trusted_proxies="127.0.0.1",
        max_connections_per_address=4,
        max_connections_per_tenant=6,
    ) as running:
        yield running
        assert running.running, running.output


@pytest.fixture(scope="module")
def command(shared_nats_server: NatsServer) -> Callable[..., str]:
    return command_of(shared_nats_server)


@pytest.fixture(scope="module")
def key(command: Callable[..., str]) -> str:
    return command("create", "acme", "--name", "tests", "--quiet")


@contextlib.asynccontextmanager
async def socket(served: Gateway, credential: str | None) -> AsyncIterator[websockets.ClientConnection]:
    headers = None if credential is None else bearer(credential)
    async with websockets.connect(f"{served.ws_url}/v1/responses", additional_headers=headers) as connection:
        yield connection


async def ask(connection: websockets.ClientConnection, **more: Any) -> dict[str, Any]:
    """The event that ends it."""
    await connection.send(json.dumps({"type": "response.create", **GOOD, **more}))
    async with asyncio.timeout(LIMIT_S):
        while not (event := json.loads(await connection.recv()))["type"].endswith(
            ("completed", "incomplete", "failed", "error")
        ):
            pass
    assert isinstance(event, dict)
    return event


async def close_code(connection: websockets.ClientConnection) -> int | None:
    async with asyncio.timeout(LIMIT_S):
        await connection.wait_closed()
    return connection.close_code


# -- HTTP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/responses"),
        ("GET", "/v1/responses/resp_01JD0000000000000000000000"),
        ("POST", "/v1/responses/resp_01JD0000000000000000000000/cancel"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/chat"),
        ("POST", "/v1/tokens"),
        ("GET", "/v1/models"),
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
    ],
)
@pytest.mark.parametrize(
    "headers", [{}, bearer("hr-0123456789ab-" + "x" * 43), bearer("hrt.a.b"), bearer("a.b.c")]
)
async def test_without_a_key_there_is_nothing_to_see(
    guarded: Gateway, method: str, path: str, headers: dict[str, str]
) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, timeout=LIMIT_S) as client:
        refused = await client.request(method, path, json=GOOD, headers=headers, params={"api_key": "x"})
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert refused.headers["www-authenticate"].startswith("Bearer")


async def test_the_page_and_health_are_for_everyone(guarded: Gateway) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, timeout=LIMIT_S) as client:
        for path in ("/", "/assets/main.js", "/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200, path


async def test_metrics_are_for_this_machine(guarded: Gateway, key: str) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, timeout=LIMIT_S) as client:
        assert (await client.get("/metrics")).status_code == 200
        proxied = {**bearer(key), "x-forwarded-for": "203.0.113.9"}
        refused = await client.get("/metrics", headers=proxied)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


def test_the_list_shows_keys_and_no_secret(command: Callable[..., str], key: str) -> None:
    shown, told = command("list"), json.loads(command("list", "--json"))
    assert f"{key.split('-')[1]}  acme" in shown
    assert key.split("-")[1] in {each["id"] for each in told}
    assert key[-43:] not in shown + json.dumps(told)
    assert "digest" not in told[0]


async def test_a_key_opens_everything(guarded: Gateway, key: str) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(key), timeout=LIMIT_S) as client:
        answer = await client.post("/v1/responses", json=GOOD)
        assert answer.status_code == 200, answer.text
        assert (await client.get(f"/v1/responses/{answer.json()['id']}")).status_code == 200


async def test_a_refused_page_can_read_why(guarded: Gateway) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, timeout=LIMIT_S) as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        assert (await client.options("/v1/responses", headers={"origin": PAGE, **asked})).status_code == 200
        refused = await client.get("/v1/models", headers={"origin": PAGE})
    assert refused.headers["access-control-allow-origin"] == PAGE


async def test_secrets_stay_out_of_the_log(guarded: Gateway, key: str) -> None:
    await status(guarded, key[:-1] + "_")
    assert key[-43:-1] not in guarded.output


# -- WebSockets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/responses", "/ws/chat"])
async def test_a_socket_without_a_key_is_told_and_closed(guarded: Gateway, path: str) -> None:
    async with websockets.connect(guarded.ws_url + path) as connection:
        refused = json.loads(await connection.recv())
        assert (refused["status"], refused["error"]["code"]) == (401, "invalid_api_key")
        assert await close_code(connection) == 4401


@pytest.mark.parametrize(
    ("offered", "accepted"),
    [
        (["headrace.v1", "headrace.token.{}"], "headrace.v1"),
        (["headrace.token.{}", "headrace.v1"], "headrace.v1"),
        (["realtime", "openai-insecure-api-key.{}", "openai-beta.realtime-v1"], "realtime"),
        (["headrace.token.{}"], None),
    ],
)
async def test_a_subprotocol_may_carry_it_and_is_not_repeated(
    guarded: Gateway, key: str, offered: list[str], accepted: str | None
) -> None:
    names = [websockets.Subprotocol(name.format(key)) for name in offered]
    async with websockets.connect(f"{guarded.ws_url}/v1/responses", subprotocols=names) as connection:
        assert connection.subprotocol == accepted
        assert (await ask(connection))["type"] == "response.incomplete"


async def test_the_client_shows_its_key(guarded: Gateway, key: str) -> None:
    async with Client([guarded.url], api_key=key) as client:
        assert (await client.respond(**GOOD)).text
    async with Client([guarded.url], api_key=key[:-1] + "_") as client:
        with pytest.raises(ResponseError, match="invalid_api_key"):
            await client.respond(**GOOD)


# -- ends --------------------------------------------------------------------------------------------


async def test_a_revoked_key_is_out_everywhere_at_once(guarded: Gateway, command: Callable[..., str]) -> None:
    doomed = command("create", "acme", "--quiet")
    await until_status(guarded, doomed, 200)
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(doomed), timeout=LIMIT_S) as client:
        token = (await client.post("/v1/tokens", json={})).json()["value"]
    async with socket(guarded, doomed) as by_key, socket(guarded, token) as by_token:
        await by_key.send(json.dumps({"type": "response.create", **GOOD, "max_output_tokens": 4000}))
        assert json.loads(await by_key.recv())["type"] == "response.created"
        command("revoke", doomed)
        assert await close_code(by_key) == 4401
        assert await close_code(by_token) == 4401
    assert await status(guarded, doomed) == 401
    assert await status(guarded, token) == 401
    assert doomed.split("-")[1] not in {key["id"] for key in json.loads(command("list", "--json"))}


async def test_a_revoked_keys_stream_breaks_off(guarded: Gateway, command: Callable[..., str]) -> None:
    doomed = command("create", "acme", "--quiet")
    await until_status(guarded, doomed, 200)
    asked = {**GOOD, "max_output_tokens": 4000, "stream": True}
    async with (
        httpx.AsyncClient(base_url=guarded.url, headers=bearer(doomed), timeout=LIMIT_S) as client,
        client.stream("POST", "/v1/responses", json=asked) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        command("revoke", doomed)
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in lines:
                pass


async def test_a_key_that_expires_closes_what_it_opened(
    guarded: Gateway, command: Callable[..., str]
) -> None:
    brief = command("create", "acme", "--quiet", "--expires-in-days", str(6 / 86_400))
    await until_status(guarded, brief, 200)
    async with socket(guarded, brief) as connection:
        assert await close_code(connection) == 4401
    assert await status(guarded, brief) == 401


async def test_keys_hold_while_the_broker_is_away(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    """And what happened meanwhile counts as soon as it is back."""
    command = command_of(nats_server)
    with_key, kept = Gateway(nats_server, redis_server, tmp_path, {"methods": "keys"}), ""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not kept:
                with contextlib.suppress(httpx.TransportError):
                    assert (await asyncio.to_thread(httpx.get, f"{with_key.url}/healthz")).status_code == 200
                    kept = command("create", "acme", "--quiet")
        doomed = command("create", "acme", "--quiet")
        await until_status(with_key, kept, 200)
        await until_status(with_key, doomed, 200)
        nats_server.kill()
        async with socket(with_key, doomed) as connection:
            await connection.send('{"type":"ping"}')
            assert json.loads(await connection.recv())["type"] == "pong"
            with nats_server.elsewhere():
                command("revoke", doomed)
            assert await status(with_key, kept) == 200
            nats_server.start()
            assert await close_code(connection) == 4401
        assert await status(with_key, doomed) == 401
        assert await status(with_key, kept) == 200
    finally:
        with_key.end()


# -- tokens ------------------------------------------------------------------------------------------


async def test_a_token_is_as_good_as_its_key_on_any_gateway_for_a_while(
    guarded: Gateway,
    key: str,
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(key), timeout=LIMIT_S) as client:
        made = await client.post("/v1/tokens", json={"expires_in_s": 60})
        assert made.headers["cache-control"] == "no-store"
        token = made.json()["value"]
        assert made.json()["expires_at"] == pytest.approx(time.time() + 60, abs=30)
        response = (await client.post("/v1/responses", json=GOOD)).json()["id"]
        brief = (await client.post("/v1/tokens", json={"expires_in_s": 1})).json()["value"]
    with gateway(shared_nats_server, shared_redis_server, tmp_path, {"methods": "keys"}) as other:
        assert await status(other, token, f"/v1/responses/{response}") == 200
        await until_status(other, brief, 401)
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(token), timeout=LIMIT_S) as client:
        refused = await client.post("/v1/tokens", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


async def test_a_token_may_be_for_one_page_alone(guarded: Gateway, key: str) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(key), timeout=LIMIT_S) as client:
        token = (await client.post("/v1/tokens", json={"origin": PAGE})).json()["value"]
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(token), timeout=LIMIT_S) as client:
        assert (await client.get("/v1/models", headers={"origin": PAGE})).status_code == 200
        assert (await client.get("/v1/models", headers={"origin": guarded.url})).status_code == 403
        assert (await client.get("/v1/models")).status_code == 403


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"expires_in_s": 0}, "invalid_value", "expires_in_s"),
        ({"expires_in_s": 3601}, "invalid_value", "expires_in_s"),
        ({"origin": "*"}, "invalid_value", "origin"),
        ({"origin": "https://a/b"}, "invalid_value", "origin"),
        ({"tenant": "other"}, "unknown_parameter", "tenant"),
    ],
)
async def test_a_token_is_asked_for_rightly(
    guarded: Gateway, key: str, body: dict[str, Any], code: str, param: str
) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(key), timeout=LIMIT_S) as client:
        error = (await client.post("/v1/tokens", json=body)).json()["error"]
    assert (error["code"], error["param"]) == (code, param)


# -- JWTs --------------------------------------------------------------------------------------------


async def test_a_jwt_opens_and_rotated_keys_are_found(guarded: Gateway, issuer: Issuer) -> None:
    assert await status(guarded, issuer.sign("k1")) == 200
    issuer.keys["k2"] = ec.generate_private_key(ec.SECP256R1())
    await until_status(guarded, issuer.sign("k2"), 200)  # not before the pause between two fetches is over
    asked = issuer.asked
    issuer.keys["k3"] = ec.generate_private_key(ec.SECP256R1())
    stranger = issuer.sign("k3")
    del issuer.keys["k3"]
    for _ in range(20):
        assert await status(guarded, stranger) == 401
    assert issuer.asked <= asked + 1
    issuer.down = True
    assert await status(guarded, issuer.sign("k1")) == 200


async def test_a_jwt_that_expires_closes_what_it_opened(guarded: Gateway, issuer: Issuer) -> None:
    shown = issuer.sign("k1", exp=time.time() - 27)  # of the 30 s that clocks may differ
    async with socket(guarded, shown) as connection:
        assert await close_code(connection) == 4401


# -- limits ------------------------------------------------------------------------------------------


async def test_wrong_keys_are_answered_429_in_the_end_and_good_ones_still_get_in(
    guarded: Gateway, key: str
) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, timeout=LIMIT_S) as client:

        def asked(credential: str) -> dict[str, str]:
            return {**bearer(credential), "x-forwarded-for": "198.51.100.4"}

        codes = [(await client.get("/v1/models", headers=asked("hr-wrong"))).status_code for _ in range(201)]
        assert codes == [401] * 200 + [429]
        assert (await client.get("/v1/models", headers=asked(key))).status_code == 200
        assert (await client.get("/v1/models", headers=bearer("hr-wrong"))).status_code == 401


async def test_zero_lifts_a_configured_limit_and_saying_nothing_does_not(
    guarded: Gateway, key: str, command: Callable[..., str], issuer: Issuer
) -> None:
    lifted = command("create", "lifted", "--requests-per-minute", "0", "--quiet")
    [listed] = [line for line in command("list").splitlines() if lifted.split("-")[1] in line]
    assert "  requests_per_minute=0" in listed
    await until_status(guarded, lifted, 200)
    async with httpx.AsyncClient(base_url=guarded.url, timeout=LIMIT_S) as client:
        minted = await client.post("/v1/tokens", headers=bearer(lifted), json={"expires_in_s": 60})

        async def limit_of(credential: str) -> str | None:
            answer = await client.post("/v1/responses", headers=bearer(credential), json=GOOD)
            assert answer.status_code == 200, answer.text
            return answer.headers.get("x-ratelimit-limit-requests")

        for credential in (key, issuer.sign("k1"), issuer.sign("k1", quota={"tokens_per_minute": 0})):
            assert await limit_of(credential) == "1000"
        unlimited = issuer.sign("k1", quota={"requests_per_minute": 0})
        for credential in (lifted, minted.json()["value"], unlimited):
            assert await limit_of(credential) is None


async def test_an_address_and_a_tenant_have_only_so_many_connections(
    guarded: Gateway, key: str, command: Callable[..., str]
) -> None:
    other = command("create", "busy", "--quiet")
    await until_status(guarded, other, 200)
    url = f"{guarded.ws_url}/v1/responses"

    def at(address: str) -> dict[str, str]:
        return {**bearer(other), "x-forwarded-for": address}

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(websockets.connect(url, additional_headers=at("203.0.113.1")))
        async with websockets.connect(url, additional_headers=at("203.0.113.1")) as fifth:
            assert "address" in json.loads(await fifth.recv())["error"]["message"]
            assert await close_code(fifth) == 1013
        for _ in range(2):
            await stack.enter_async_context(websockets.connect(url, additional_headers=at("203.0.113.2")))
        async with websockets.connect(url, additional_headers=at("203.0.113.2")) as seventh:
            assert "tenant" in json.loads(await seventh.recv())["error"]["message"]
        assert await status(guarded, key) == 200


async def test_whatever_an_issuer_answers_the_gateway_goes_on(
    guarded: Gateway, key: str, issuer: Issuer
) -> None:
    """Without keys, JWTs wait and API keys do not."""
    other = Jwks(issuer.url)
    issuer.down = True
    fetching = asyncio.create_task(other.run())
    try:
        with pytest.raises(HeadraceError, match="auth_unavailable"):
            await other.find("k1")
        assert not fetching.done()
    finally:
        issuer.down = False
        fetching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await fetching
    assert await status(guarded, key) == 200
