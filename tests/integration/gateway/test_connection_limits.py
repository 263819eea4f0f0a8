"""What a client can make a gateway hold: half requests, endless heads, fragments, what it does not read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import websockets
from prometheus_client import REGISTRY
from starlette.types import Receive, Scope, Send

from gateway.certificate import Certificate, certificate_of
from gateway.server import bind, make_server
from gateway.websocket_protocol import MAX_FRAGMENTS
from schemas.config import Gateway as GatewaySection
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.certificates import write_certificate
from tests.integration.gateway.processes import Gateway, gateway, worker

LIMIT_S = 30
HEAD_BYTES = 4096
MB = 1 << 20


@pytest.fixture(scope="module")
def strict(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """Beside a worker that takes no time for a token."""
    folder = tmp_path_factory.mktemp("strict")
    with (
        worker(shared_nats_server, shared_redis_server, folder, inter_token_ms=0, mean_output_tokens=0),
        gateway(
            shared_nats_server,
            shared_redis_server,
            folder,
            head_timeout_s=1,
            body_timeout_s=1,
            max_head_bytes=HEAD_BYTES,
            idle_s=4,
            slow_reader_s=1,
            ping_interval_s=60,
            ping_timeout_s=60,
        ) as running,
    ):
        yield running
        assert running.running, running.output
        assert "Traceback" not in running.output


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def raw(served: Gateway) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=64 * MB)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Status and code of an answer after which the server has hung up."""
    data = b""
    async with asyncio.timeout(LIMIT_S):
        with contextlib.suppress(ConnectionResetError):  # what came before it was read piece by piece
            while piece := await reader.read(65_536):
                data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


async def drip(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Until the server has had enough."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)


# -- time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ", b"a"),
        (b"", b"\r\n"),
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-B: b\r\n"),
        (b"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{", b" "),
        (b"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
)
async def test_a_request_that_does_not_come_is_not_waited_for(
    strict: Gateway, begin: bytes, piece: bytes
) -> None:
    async with raw(strict) as (reader, writer):
        writer.write(begin)
        dripping = asyncio.create_task(drip(writer, piece))
        try:
            assert await answer(reader) == (408, "request_timeout")
        finally:
            dripping.cancel()


async def test_a_second_request_must_come_in_time_too(strict: Gateway) -> None:
    async with raw(strict) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        async with asyncio.timeout(LIMIT_S):
            assert b"ok\n" in await reader.readuntil(b"ok\n")
        writer.write(b"GET /healthz HT")
        assert await answer(reader) == (408, "request_timeout")


async def test_an_answer_may_take_longer_than_its_request(strict: Gateway) -> None:
    """The time limits are those of what the client sends."""
    asked = {"input": "hello", "max_output_tokens": 16_000, "stream": True}
    async with (
        httpx.AsyncClient(base_url=strict.url, timeout=LIMIT_S) as client,
        client.stream("POST", "/v1/responses", json=asked) as streamed,
    ):
        lines = [line async for line in streamed.aiter_lines()]
    assert lines[-2].startswith('data: {"') or lines[-1].startswith('data: {"')
    assert "response.incomplete" in "".join(lines[-4:])


# -- size --------------------------------------------------------------------------------------------

GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = b"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        GET + b"X-A: " + b"a" * HEAD_BYTES + b"\r\n\r\n",
        GET + b"X-A: a\r\n" * 129,
    ],
    ids=["url", "header", "headers"],
)
async def test_a_head_too_large_is_refused(strict: Gateway, sent: bytes) -> None:
    async with raw(strict) as (reader, writer):
        writer.write(sent)
        assert await answer(reader) == (431, "head_too_large")


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"GET /", b"a"),
        (GET + b"X-A: ", b"a"),
        (GET, b"a"),
        (CHUNKED + b"0\r\n", b"X-A: a\r\n"),
        (CHUNKED + b"0\r\nX-A: ", b"a"),
        (CHUNKED + b"1;", b"a"),
    ],
    ids=["url", "header", "name", "trailers", "trailer", "chunk-extension"],
)
async def test_what_has_no_end_is_cut(strict: Gateway, begin: bytes, piece: bytes) -> None:
    async with raw(strict) as (_, writer):
        writer.write(begin)
        with pytest.raises(ConnectionError):
            await send_on(writer, piece * 16_384)


async def send_on(writer: asyncio.StreamWriter, data: bytes) -> None:
    for _ in range(500):
        writer.write(data)
        await writer.drain()


async def test_a_head_within_the_limit_is_served(strict: Gateway) -> None:
    async with httpx.AsyncClient(base_url=strict.url) as client:
        assert (await client.get("/healthz", headers={"x-a": "a" * 3000})).status_code == 200


async def test_what_is_no_http_is_refused_in_our_words(strict: Gateway) -> None:
    async with raw(strict) as (reader, writer):
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        assert await answer(reader) == (400, "invalid_request")


async def test_a_message_of_countless_fragments_is_refused(strict: Gateway) -> None:
    """Empty ones weigh nothing, so the limit of a frame's size never sees them."""
    async with websockets.connect(f"{strict.ws_url}/v1/responses") as connection:
        await connection.send([b""] * MAX_FRAGMENTS)
        async with asyncio.timeout(LIMIT_S):
            await connection.wait_closed()
        assert connection.close_code == 1009


# -- sockets that say nothing, or read nothing -------------------------------------------------------


async def test_a_socket_on_which_nothing_is_said_is_closed_so_that_it_may_come_back(strict: Gateway) -> None:
    async with websockets.connect(f"{strict.ws_url}/v1/responses") as connection:
        async with asyncio.timeout(LIMIT_S):
            await connection.wait_closed()
        assert connection.close_code == 1001


def shaken(served: Gateway) -> socket.socket:
    """A WebSocket by hand, whose window is small."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(LIMIT_S)
    client.connect(("127.0.0.1", served.port))
    key = base64.b64encode(os.urandom(16))
    client.sendall(
        b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    assert b" 101 " in head
    return client


def frame(opcode: int, payload: bytes) -> bytes:
    """Masked with zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


def rss_bytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def send_all_it_takes(client: socket.socket, pieces: list[bytes]) -> int:
    """Bytes sent before it hung up, or would take no more."""
    client.settimeout(1)
    sent = 0
    with contextlib.suppress(OSError):
        for piece in pieces:
            client.sendall(piece)
            sent += len(piece)
    client.settimeout(LIMIT_S)
    return sent


async def sockets_open(served: Gateway) -> int:
    async with httpx.AsyncClient(base_url=served.url) as client:
        text = (await client.get("/metrics")).text
    found = re.search(r"^headrace_gateway_connections (\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


async def test_a_client_that_does_not_read_is_closed_with_1013_and_holds_no_memory(strict: Gateway) -> None:
    """It asks for the same long answer a thousand times: 300 MB, were they kept for it."""
    async with httpx.AsyncClient(base_url=strict.url, timeout=LIMIT_S) as http:
        made = (await http.post("/v1/responses", json={"input": "x", "max_output_tokens": 16_000})).json()
        text = made["output"][0]["content"][0]["text"]
        before = rss_bytes(strict.pid)
        client = shaken(strict)
        with client:
            resume = json.dumps({"type": "response.resume", "response_id": made["id"]}).encode()
            await asyncio.to_thread(send_all_it_takes, client, [frame(1, resume)] * 1000)
            async with asyncio.timeout(LIMIT_S):
                while await sockets_open(strict):
                    await asyncio.sleep(0.01)
            grown = rss_bytes(strict.pid) - before
            assert grown < 40 * len(text) * 4 + 16 * MB, f"{grown / MB:.0f} MB"
            assert await asyncio.to_thread(close_code_of, client) == 1013
        again = await http.get(f"/v1/responses/{made['id']}")
        assert again.json()["output"] == made["output"]


def close_code_of(client: socket.socket) -> int:
    """Of the last frame, all others before it read and dropped."""
    data = b""
    while chunk := client.recv(1 << 16):
        data = (data + chunk)[-200:]
    at = data.rindex(b"\x88")
    (code,) = struct.unpack("!H", data[at + 2 : at + 4])
    return int(code)


async def test_pings_whose_pongs_are_not_read_hold_no_memory(strict: Gateway) -> None:
    before = rss_bytes(strict.pid)
    with shaken(strict) as client:
        ping = frame(9, b"x" * 125) * 500
        sent = await asyncio.to_thread(send_all_it_takes, client, [ping] * 1500)
    assert sent < 90 * MB, "it took them all"
    assert rss_bytes(strict.pid) - before < 16 * MB


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_an_answer_that_is_not_read_is_cut_off(certificate: tuple[Path, Path], tls: bool) -> None:
    """On the server alone, in this process: an application that would never stop writing."""
    gone = asyncio.Event()
    written = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal written
        await send({"type": "http.response.start", "status": 200, "headers": []})
        watching = asyncio.create_task(until_gone(receive))
        while not watching.done():
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            written += 65_536
            await asyncio.sleep(0)
        gone.set()

    async def until_gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    cert, key = map(str, certificate) if tls else ("", "")
    config = GatewaySection(port=0, slow_reader_s=0.5, tls_cert=cert, tls_key=key)
    trusting = ssl.create_default_context(cafile=cert) if tls else None
    with bind(config) as listener:
        served = certificate_of(config)
        server = make_server(app, config, None if served is None else served.context)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.01)
            port = listener.getsockname()[1]
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting, server_hostname="localhost" if tls else None, limit=4096
            )
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(LIMIT_S):
                await gone.wait()
            assert written < 32 * MB
            writer.transport.abort()
        finally:
            server.should_exit = True
            await serving


# -- TLS ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_certificate(tmp_path_factory.mktemp("tls"))


async def test_tls(
    strict: Gateway,
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    certificate: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """The worker is that of the other gateway."""
    cert, key = certificate
    with gateway(
        shared_nats_server, shared_redis_server, tmp_path, tls_cert=cert, tls_key=key, slow_reader_s=1
    ) as served:
        trusting = ssl.create_default_context(cafile=str(cert))
        url = f"https://localhost:{served.port}"
        async with httpx.AsyncClient(verify=trusting, timeout=LIMIT_S) as client:
            answer = await client.post(f"{url}/v1/responses", json={"input": "x", "max_output_tokens": 4})
            assert answer.status_code == 200
        ws_url = f"wss://localhost:{served.port}/v1/responses"
        async with websockets.connect(ws_url, ssl=trusting) as connection:
            await connection.send('{"type":"ping"}')
            assert json.loads(await connection.recv())["type"] == "pong"
        old = ssl.create_default_context(cafile=str(cert))
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        async with httpx.AsyncClient(verify=old) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"{url}/healthz")


async def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = write_certificate(tmp_path)
    certificate = Certificate(str(cert), str(key))
    server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0, ssl=certificate.context)

    def ends() -> float:
        shown = REGISTRY.get_sample_value("headrace_gateway_certificate_expiry_timestamp_seconds")
        assert shown is not None
        return shown

    async with server:

        async def served() -> str:
            """As its client sees it: the one that is trusted, or an error."""
            port = server.sockets[0].getsockname()[1]
            trusting = ssl.create_default_context(cafile=str(cert))
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting, server_hostname="localhost"
            )
            shown: dict[str, str] = writer.get_extra_info("peercert")
            writer.close()
            return shown["serialNumber"]

        first = await served()
        certificate.renew()
        assert await served() == first
        first_end = ends()
        assert first_end == pytest.approx(time.time() + 86400, abs=LIMIT_S)
        write_certificate(tmp_path, lives=timedelta(days=90))
        with pytest.raises(ssl.SSLError):
            await served()  # the new one is trusted, the old one is served
        assert ends() == first_end
        certificate.renew()
        second = await served()
        assert second != first
        assert ends() > first_end
        key.write_text("half of a key")
        certificate.renew()
        assert "the old one stays" in caplog.text
        assert await served() == second
