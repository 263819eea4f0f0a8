"""An HTTP request from its body to its answer: one, or a stream. Must not know any API's JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import cast

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from gateway.admission import limit_headers
from gateway.api.correlation import request_id, traceparent
from gateway.api.front import Front, caller_of
from gateway.api.parse_json import JsonObject, decode_object, too_large
from gateway.generation import Ended, Generation
from gateway.live import Live, now_ms
from gateway.round_trip import rtt_ms
from schemas.errors import HeadraceError

MAX_KEY = 256


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
    request.state.received_unix_ms = now_ms()
    return decode_object(bytes(body))


def received_unix_ms(request: Request) -> float:
    """When its body was here."""
    return cast("float", request.state.received_unix_ms)


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
        received_unix_ms=received_unix_ms(request),
        traceparent=traceparent(request),
    )
    generation = as_asked(request, replace(generation, idempotency_key=idempotency_key(request)))
    with front.answering():
        live = await submit(front, generation, names)
        if stream is not None:
            return stream(live)
        await until_ended_for(front, [live], request)
        assert live.end is not None
        return json_answer(await answer(live, live.end), live)


def as_asked(request: Request, generation: Generation) -> Generation:
    """With what the connection and the headers say, whatever the API."""
    no_store = "no-store" in request.headers.get("cache-control", "").lower()
    return replace(
        generation,
        rtt_ms=rtt_ms(request.scope),
        request_id=request_id(request),
        cache="off" if no_store else generation.cache,
    )


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
    reader.divert(front.tick, lambda text: True)  # it is asked for when it has ended
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


async def until_ended_for(front: Front, lives: Sequence[Live], request: Request) -> None:
    """Until all have ended, or one has failed. Raises ``ClientGone``, and what ``until_ended`` raises; then
    they are cancelled, because the client never learned their ids; but not what it may ask for again: that
    has the grace time."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        raise ClientGone

    trouble: Exception = ClientGone()
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(), name=f"watch-{lives[0].response_id}")
            try:
                await _until_settled(front, lives)
                return
            except HeadraceError as error:
                trouble = error
            finally:
                watching.cancel()
    except* ClientGone:
        pass
    await give_up_all(front, lives)
    raise trouble


async def _until_settled(front: Front, lives: Sequence[Live]) -> None:
    if len(lives) == 1:
        await until_ended(front, lives[0])
        return
    waiting = [
        asyncio.create_task(until_ended(front, live), name=f"end-of-{live.response_id}") for live in lives
    ]
    try:
        for ended in asyncio.as_completed(waiting):
            if (await ended).outcome in ("failed", "cancelled"):
                return
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def give_up_all(front: Front, lives: Iterable[Live]) -> None:
    """Those that have not ended; but not what the client may ask for again."""
    async with asyncio.TaskGroup() as tasks:
        for live in lives:
            if live.end is None and not live.is_repeatable:
                tasks.create_task(give_up(front, live), name=f"give-up-{live.response_id}")


def json_answer(body: msgspec.Struct, live: Live) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json", headers=headers_of(live))


def headers_of(live: Live) -> dict[str, str]:
    """``x-request-id`` is the response's id: with it, any API's response can be found and cancelled. The
    others tell the model, how it was chosen, whether the answer is a shared one (hit, joined or miss, where
    one was looked for), and what is left of the tenant's limits, which is told by the gateway that admitted
    it."""
    headers = {"x-request-id": live.response_id, "x-headrace-model": _shown(live.model_name)}
    headers |= limit_headers(live.allowance)
    if live.job.presentation.cache != "none":
        headers["x-headrace-cache"] = live.job.presentation.cache
    if (route := live.job.presentation.route) is not None:
        headers["x-headrace-route"] = _shown("; ".join(filter(None, (route.by, route.reason))))
    return headers


def _shown(text: str) -> str:
    """What a header may hold: names of models are anybody's text."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else "?" for c in text)
