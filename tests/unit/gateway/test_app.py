"""What the gateway answers without asking any other part: the page, refusals at the door, the document."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

import gateway
from broker.settings import ConfigError, load
from gateway.api.app import build
from gateway.api.front import Front
from gateway.api.openapi import document
from gateway.main import refuse_open_host
from gateway.pipeline import Pipeline
from schemas.config import Config, Gateway
from schemas.errors import ERRORS

HOST = "http://127.0.0.1:8080"


def app(**limits: Any) -> Any:
    """None of these tests gets as far as the pipeline."""
    return build(Front(cast(Pipeline, None), Gateway(**limits)))


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app()), base_url=HOST) as connected:
        yield connected


def code(answer: httpx.Response) -> str:
    found = answer.json()["error"]["code"]
    assert ERRORS[found].http_status == answer.status_code
    return str(found)


async def test_the_page_may_load_only_what_this_server_serves(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    referred = re.findall(r'(?:src|href)="(/[^"]*)"', page.text)
    assert referred
    for path in referred:
        assert (await client.get(path)).status_code == 200
    assert "style=" not in page.text


async def test_a_file_that_did_not_change_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/")
    again = await client.get("/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/nowhere", "/assets/none.js", "/assets/%2e%2e/app.py", "/assets/index.html", "/docs"]
)
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert code(await client.get(path)) == "not_found"


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/chat", "POST"),
        ("/v1/responses/resp_0", "DELETE, GET"),
        ("/v1/conversations/one", "DELETE, GET"),
        ("/v1/conversations/one/items", "GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    client: httpx.AsyncClient, path: str, served: str
) -> None:
    answer = await client.put(path)
    assert code(answer) == "method_not_allowed"
    assert answer.headers["allow"] == served


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/chat"])
@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"{", {}, "invalid_json"),
        (b"\xff", {}, "invalid_encoding"),
        (b"[]", {}, "invalid_request"),
        (b"{}", {}, "invalid_request"),
        (b'{"nonsense":1}', {}, "unknown_parameter"),
        (b"{}", {"content-encoding": "gzip"}, "invalid_encoding"),
        (b" " * 1001, {}, "payload_too_large"),
    ],
)
async def test_a_bad_body_is_refused(path: str, body: bytes, headers: dict[str, str], expected: str) -> None:
    transport = httpx.ASGITransport(app(max_message_bytes=1000))
    async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
        assert code(await client.post(path, content=body, headers=headers)) == expected


async def test_a_body_without_a_length_is_measured_while_it_comes(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b" " * (1 << 16)

    assert code(await client.post("/chat", content=endless())) == "payload_too_large"
    assert sent < 2 << 20


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:8081"}, 403),
        ({"origin": "http://evil.example:8080", "host": "evil.example:8080"}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "http://[::1", "host": "[::1"}, 403),
        ({"origin": HOST}, 200),
        ({"origin": "http://localhost:8080", "host": "localhost:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
    ],
)
async def test_pages_from_elsewhere_are_kept_out(
    client: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    assert (await client.get("/", headers=headers)).status_code == status


async def test_who_names_two_hosts_is_believed_neither(client: httpx.AsyncClient) -> None:
    hosts = [("host", "127.0.0.1:8080"), ("host", "evil.example")]
    for headers in (hosts, hosts[::-1]):
        assert code(await client.get("/", headers=headers)) == "forbidden"


async def test_the_pages_own_files_are_no_secret(client: httpx.AsyncClient) -> None:
    """Browsers send an Origin for scripts: behind a proxy that changes Host, the page could not even say why
    it does not work."""
    assert (await client.get("/assets/main.js", headers={"origin": "http://evil.example"})).status_code == 200
    assert (await client.get("/assets/main.js", headers={"host": "evil.example"})).status_code == 403


async def test_behind_a_proxy_any_host_is_served() -> None:
    transport = httpx.ASGITransport(app(allow_unauthenticated=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://chat.example") as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/", headers={"origin": "http://evil.example"})).status_code == 403


ELSEWHERE = {"origin": "https://chat.example.com"}


async def test_a_listed_origin_is_served_as_browsers_need_it() -> None:
    front = Front(cast(Pipeline, None), Gateway(allowed_origins=(ELSEWHERE["origin"],), max_connections=1))
    transport = httpx.ASGITransport(cast(Any, build(front)))
    async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
        served = await client.get("/healthz", headers=ELSEWHERE)
        assert served.status_code == 200
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = await client.options("/v1/responses", headers={**ELSEWHERE, **asked})
        assert preflight.status_code == 200
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        bad = await client.post("/v1/responses", content=b"{", headers=ELSEWHERE)
        assert code(bad) == "invalid_json"
        with front.connected():
            full = await client.get("/", headers=ELSEWHERE)
        assert code(full) == "too_many_connections"
        for answer in (served, preflight, bad, full):
            assert answer.headers["access-control-allow-origin"] == ELSEWHERE["origin"]
        other = await client.get("/healthz", headers={"origin": "https://chat.example.org"})
        assert code(other) == "forbidden"
        assert "access-control-allow-origin" not in other.headers
        own = await client.get("/healthz", headers={"origin": HOST})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers


async def test_any_origin_may_be_listed() -> None:
    transport = httpx.ASGITransport(app(allowed_origins=("*",)))
    async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
        served = await client.get("/", headers=ELSEWHERE)
        assert (served.status_code, served.headers["access-control-allow-origin"]) == (200, "*")


def test_origins_are_read_from_the_environment_and_checked() -> None:
    name = "HEADRACE_GATEWAY__ALLOWED_ORIGINS"
    config = load(None, {name: "https://chat.example.com, http://localhost:3000"})
    assert config.gateway.allowed_origins == ("https://chat.example.com", "http://localhost:3000")
    assert load(None, {name: ""}).gateway.allowed_origins == ()
    with pytest.raises(ConfigError, match=name):
        load(None, {name: "https://chat.example.com/"})


async def test_a_full_gateway_says_so_and_its_operator_still_gets_in() -> None:
    front = Front(cast(Pipeline, None), Gateway(max_connections=1))
    transport = httpx.ASGITransport(cast(Any, build(front)))
    async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
        with front.connected():
            refused = await client.get("/")
            assert (await client.get("/healthz")).status_code == 200
        assert code(refused) == "too_many_connections"
        assert refused.headers["retry-after"] == "5"
        assert (await client.get("/")).status_code == 200


async def test_the_document_of_the_routes_is_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == document()


def test_the_protocol_page_lists_every_code() -> None:
    text = (Path(gateway.__file__).parent / "PROTOCOL.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (\d*) ?\|", text, re.MULTILINE)
    listed = {name: (int(status), int(after) if after else None) for name, status, after in rows}
    assert listed == {name: (spec.http_status, spec.retry_after_s) for name, spec in ERRORS.items()}


def test_every_code_of_the_table_can_happen() -> None:
    root = Path(gateway.__file__).parents[1]
    files = [file for part in ("gateway", "workers", "broker") for file in (root / part).rglob("*.py")]
    said = set(re.findall(r'"(\w+)"', "\n".join(file.read_text() for file in files)))
    assert set(ERRORS) - said == set()


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.1.2.3", False)],
)
def test_only_loopback_is_open_to_everyone(host: str, allowed: bool) -> None:
    refuse_open_host(Config(gateway=Gateway(host=host, allow_unauthenticated=True)))
    if allowed:
        refuse_open_host(Config(gateway=Gateway(host=host)))
    else:
        with pytest.raises(ConfigError, match="allow_unauthenticated"):
            refuse_open_host(Config(gateway=Gateway(host=host)))


def test_a_gateway_imports_no_engine() -> None:
    engines = "{'torch', 'vllm', 'transformers', 'workers'}"
    program = f"import sys, gateway.main; print(sorted({engines} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
