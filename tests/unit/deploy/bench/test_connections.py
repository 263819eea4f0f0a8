"""HTTP and WebSocket connections, fed by hand: whole answers, refusals, and every way to break."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from websockets.frames import Frame, Opcode

from deploy.bench.http_connection import HttpConnection
from deploy.bench.streams import End
from deploy.bench.ws_connection import WsConnection
from tests.unit.deploy.bench.connections import ADDRESS, Wire, exchange

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
FIRST = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Http:
    def __init__(self) -> None:
        self.free: list[HttpConnection] = []
        self.lost: list[HttpConnection] = []
        self.wire = Wire()
        self.connection = HttpConnection(ADDRESS, "key%", self.free.append, self.lost.append)
        self.connection.connection_made(self.wire)
        self.asked = exchange("chat")
        self.connection.ask(b'{"a": 1}', self.asked)


async def test_a_request() -> None:
    http = Http()
    head, _, body = http.wire.written.partition(b"\r\n\r\n")
    assert body == b'{"a": 1}'
    assert head.split(b"\r\n")[0] == b"POST /v1/x HTTP/1.1"
    assert b"\r\nAuthorization: Bearer key%\r\n" in head
    assert b"\r\nContent-Length: 8" in head


@pytest.mark.parametrize("size", [1, 7, 60, 10_000])
async def test_an_answer_in_pieces_of_any_size(size: int) -> None:
    http = Http()
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + chunk(FIRST) + chunk(LAST) + chunk(b"")
    for start in range(0, len(answer), size):
        http.connection.data_received(answer[start : start + size])
    assert http.asked.end == End("completed")
    assert http.asked.settled.done()
    assert http.asked.deltas == 2
    assert http.asked.arrivals == (1 if size == 10_000 else 2)
    assert http.asked.stream.text == "ab"
    assert http.free == [http.connection]
    http.connection.ask(b"{}", again := exchange("chat"))
    http.connection.data_received(answer)
    assert again.end == End("completed")


async def test_an_answer_that_is_cut_off_is_broken() -> None:
    http = Http()
    http.connection.data_received(HEAD + chunk(FIRST))
    http.connection.connection_lost(None)
    assert http.asked.end == End("broken", "connection closed")
    assert http.asked.settled.done()
    assert http.lost == [http.connection]


async def test_an_answer_that_ends_whole_but_early_is_broken() -> None:
    http = Http()
    http.connection.data_received(HEAD + chunk(FIRST) + chunk(b""))
    assert http.asked.end == End("broken", "ended without a finish reason")


async def test_a_connection_that_was_reset_before_any_answer() -> None:
    http = Http()
    http.connection.connection_lost(ConnectionResetError())
    assert http.asked.end == End("broken", "connection reset")


async def test_asking_on_a_lost_connection_is_told_at_once() -> None:
    http = Http()
    http.connection.data_received(HEAD + chunk(LAST) + chunk(b""))
    http.connection.connection_lost(None)
    http.connection.ask(b"{}", late := exchange("chat"))
    assert late.end == End("broken", "connection closed")
    assert late.settled.done()


async def test_a_refusal_has_its_code_and_frees_the_connection() -> None:
    http = Http()
    body = json.dumps({"error": {"code": "queue_full"}}).encode()
    head = b"HTTP/1.1 429 Too Many\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
        body
    )
    http.connection.data_received(head + body)
    assert http.asked.end == End("refused", "429 queue_full")
    assert http.free == [http.connection]


async def test_a_server_that_closes_after_its_answer_is_not_asked_again() -> None:
    http = Http()
    http.connection.data_received(HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    http.connection.data_received(chunk(LAST) + chunk(b""))
    assert http.asked.end == End("completed")
    assert http.free == []
    assert http.wire.ended


async def test_what_is_no_http_is_broken() -> None:
    http = Http()
    http.connection.data_received(b"SSH-2.0-OpenSSH\r\n")
    assert http.asked.outcome == "broken"
    assert http.wire.ended


class Ws:
    def __init__(self) -> None:
        self.free: list[WsConnection] = []
        self.lost: list[WsConnection] = []
        self.wire = Wire()
        self.connection = WsConnection(ADDRESS, "key", self.free.append, self.lost.append)
        self.connection.connection_made(self.wire)
        self.hello, self.wire.written = self.wire.written, b""

    def greet(self) -> None:
        (key,) = (line for line in self.hello.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
        digest = hashlib.sha1(key[19:] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        accept = base64.b64encode(digest)
        self.connection.data_received(b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Acc")
        self.connection.data_received(b"ept: %b\r\n\r\n" % accept)

    def say(self, **event: object) -> None:
        self.frame(Frame(Opcode.TEXT, json.dumps(event).encode()))

    def frame(self, frame: Frame) -> None:
        self.connection.data_received(frame.serialize(mask=False))


CREATED = {"type": "response.created", "response": {"id": "resp_1"}}


async def test_two_responses_on_one_websocket() -> None:
    ws = Ws()
    assert b"Authorization: Bearer key\r\n" in ws.hello
    ws.greet()
    assert ws.connection.opened.result() is None
    for number in (1, 2):
        ws.connection.ask(b"{}", asked := exchange("responses-ws"))
        ws.say(**CREATED)
        ws.frame(Frame(Opcode.PING, b"?"))
        ws.say(type="response.output_text.delta", delta="a")
        ws.say(type="response.completed", response={"id": "resp_1", "usage": {"output_tokens": 1}})
        assert asked.end == End("completed")
        assert asked.settled.done()
        assert ws.free == [ws.connection] * number
    assert b"\x8a\x81" in ws.wire.written  # a masked pong


async def test_a_websocket_that_closes_breaks_its_response() -> None:
    ws = Ws()
    ws.greet()
    ws.connection.ask(b"{}", asked := exchange("responses-ws"))
    ws.say(**CREATED)
    ws.frame(Frame(Opcode.CLOSE, b"\x03\xf4"))
    ws.connection.connection_lost(None)
    assert asked.end == End("broken", "closed with 1012")
    assert ws.lost == [ws.connection]


async def test_a_websocket_that_is_refused_at_the_door() -> None:
    ws = Ws()
    ws.greet()
    ws.say(type="error", status=401, error={"code": "invalid_api_key"})
    ws.frame(Frame(Opcode.CLOSE, b"\x11\x31"))
    ws.connection.ask(b"{}", asked := exchange("responses-ws"))
    assert asked.end == End("refused", "401 invalid_api_key")
    assert asked.settled.done()


async def test_a_handshake_that_is_refused() -> None:
    ws = Ws()
    ws.connection.data_received(b'HTTP/1.1 404 Not Found\r\n\r\n{"error": {"code": "not_found"}}')
    assert ws.connection.opened.result() == End("refused", "404 not_found")
    assert ws.wire.ended


async def test_a_handshake_that_never_ends() -> None:
    ws = Ws()
    ws.connection.connection_lost(None)
    assert ws.connection.opened.result() == End("unreachable", "closed during the handshake")


async def test_an_answer_to_another_key_is_no_websocket() -> None:
    ws = Ws()
    ws.connection.data_received(b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: AAAA\r\n\r\n")
    assert ws.connection.opened.result() == End("failed", "no WebSocket")
