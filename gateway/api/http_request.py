"""An HTTP request's body, and its client's presence until the one answer. Must not know any API's JSON."""

from __future__ import annotations

import asyncio
import re
import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.parse_json import JsonObject, decode_object, too_large
from gateway.generation import Ended
from gateway.live import Live
from schemas.errors import HeadraceError

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context


class ClientGone(Exception):
    """The client of an HTTP request hung up before it was answered."""


async def read_object(request: Request, max_bytes: int) -> JsonObject:
    """The body of a POST. Raises ``payload_too_large`` while reading, with or without content-length."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise HeadraceError("invalid_encoding", f"Send the body as it is, not as {encoding[:40]!r}.")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > max_bytes:
        raise too_large(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large(max_bytes)
    return decode_object(bytes(body))


def traceparent(request: Request) -> str | None:
    """W3C trace context; one that is malformed is dropped, as its specification demands."""
    value = request.headers.get("traceparent", "")
    return value if _TRACEPARENT.fullmatch(value) else None


def now_ms() -> float:
    return time.time() * 1000


async def until_ended(live: Live, request: Request) -> Ended:
    """Wait for the end of a response whose client wants one answer. Raises ``ClientGone``; the response
    is then detached from, and ends by the pipeline's grace time."""
    reader = live.reader()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        raise ClientGone

    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(), name=f"watch-{live.response_id}")
            while await reader.next():
                pass
            watching.cancel()
    except* ClientGone:
        raise ClientGone from None
    finally:
        reader.close()
    if live.end is None:
        raise RuntimeError("the updates of a response ended before the response")
    return live.end


def json_answer(body: msgspec.Struct, live: Live) -> Response:
    """``x-request-id`` is the response's id: with it, any API's response can be found and cancelled."""
    return Response(
        msgspec.json.encode(body), media_type="application/json", headers={"x-request-id": live.response_id}
    )
