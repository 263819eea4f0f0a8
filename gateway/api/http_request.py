"""An HTTP request from its body to its answer: one, or a stream. Must not know any API's JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.front import Front, caller_of
from gateway.api.parse_json import JsonObject, decode_object, too_large
from gateway.generation import Ended, Generation
from gateway.live import Live, now_ms
from schemas.errors import HeadraceError

MAX_KEY = 256
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


def idempotency_key(request: Request) -> str | None:
    """Of the header. Raises ``invalid_value``."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_KEY:
        problem = f"Idempotency-Key: give 1 to {MAX_KEY} characters, or leave it out."
        raise HeadraceError("invalid_value", problem, param="idempotency_key")
    return key


async def generate(
    front: Front,
    request: Request,
    to_generation: Callable[..., Generation],
    *,
    stream: Callable[[Live], Response] | None,
    answer: Callable[[Live, Ended], Awaitable[msgspec.Struct]],
    names: Mapping[str, str] | None = None,
) -> Response:
    """A parsed request's answer: ``stream`` if the client asked for one, else ``answer`` of its end.
    ``names``: as for ``submit``. Raises ``HeadraceError``, ``ClientGone``."""
    generation = to_generation(
        caller=caller_of(request),
        limits=front.limits,
        received_unix_ms=now_ms(),
        traceparent=traceparent(request),
    )
    generation = replace(generation, idempotency_key=idempotency_key(request))
    if "no-store" in request.headers.get("cache-control", "").lower():
        generation = replace(generation, cache="off")
    with front.answering():
        live = await submit(front, generation, names)
        if stream is not None:
            return stream(live)
        end = await _until_ended_for(front, live, request)
        return json_answer(await answer(live, end), live)


async def submit(front: Front, generation: Generation, names: Mapping[str, str] | None = None) -> Live:
    """``names``: what an API calls the Responses API's parameters, for the ``param`` of a refusal."""
    try:
        return await front.pipeline.submit(generation)
    except HeadraceError as error:
        named = (names or {}).get(error.param or "")
        if named is None:
            raise
        raise HeadraceError(error.code, error.message, param=named) from error


async def until_ended(front: Front, live: Live) -> Ended:
    """Raises ``HeadraceError`` where the response is lost to this gateway, or that is going away."""
    reader = front.reader(live)
    try:
        while await reader.next():
            pass
    finally:
        front.leave(reader)
    if live.end is None:
        raise RuntimeError("the updates of a response ended before the response")
    return live.end


async def give_up(front: Front, live: Live) -> None:
    """Nobody waits for it any more, and nobody knows its id to resume it: it is cancelled at once."""
    if live.end is None:
        with suppress(HeadraceError):  # the broker is away: the grace time ends it later
            await front.pipeline.cancel(live.response_id, live.tenant)


async def _until_ended_for(front: Front, live: Live, request: Request) -> Ended:
    """Raises ``ClientGone``, and what ``until_ended`` raises; then the response is cancelled, because its
    client never learned its id; but not one that it may ask for again: that one has the grace time."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        raise ClientGone

    trouble: Exception = ClientGone()
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(), name=f"watch-{live.response_id}")
            try:
                return await until_ended(front, live)
            except HeadraceError as error:
                trouble = error
            finally:
                watching.cancel()
    except* ClientGone:
        pass
    if not live.is_repeatable:
        await give_up(front, live)
    raise trouble


def json_answer(body: msgspec.Struct, live: Live) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json", headers=answer_headers(live))


def answer_headers(live: Live) -> dict[str, str]:
    """``x-request-id`` is the response's id: with it, any API's response can be found and cancelled.
    ``x-headrace-cache``: hit, joined or miss, where an answer to share was looked for."""
    headers: dict[str, str] = {"x-request-id": live.response_id}
    if live.job.presentation.cache != "none":
        headers["x-headrace-cache"] = live.job.presentation.cache
    return headers
