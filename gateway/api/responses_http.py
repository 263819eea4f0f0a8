"""The Responses API over HTTP: create (JSON or stream), retrieve, resume, cancel."""

from __future__ import annotations

from functools import partial
from typing import Literal

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from broker.metrics import RESUMES
from gateway.api import responses_object
from gateway.api.errors import of_end
from gateway.api.event_stream import EventStream, Source
from gateway.api.front import Front, caller_of
from gateway.api.http_request import generate, headers_of, json_answer, read_object, until_ended
from gateway.api.item_list import items_of, listed
from gateway.api.parse_json import unknown_parameter
from gateway.api.parse_responses import parse_create, to_generation
from gateway.api.responses_events import Event
from gateway.api.responses_view import attach, events_of, first_token, request_of, snapshot
from gateway.api.responses_view import cancel as cancel_response
from gateway.api.responses_view import delete as delete_response
from gateway.context import said_in
from gateway.generation import Ended, Update
from gateway.live import Live
from schemas.errors import HeadraceError

_RETRIEVE = ("stream", "starting_after", "include_obfuscation")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


async def create(front: Front, request: Request) -> Response:
    """Raises ``HeadraceError``, ``ClientGone``."""
    params = parse_create(await read_object(request, front.limits.max_message_bytes))
    if params.stream_id is not None:
        raise HeadraceError(
            "unsupported_parameter", "stream_id is for WebSockets: leave it out.", param="stream_id"
        )
    if params.idempotency_key is not None:
        problem = "Send the idempotency key as the header Idempotency-Key."
        raise HeadraceError("unsupported_parameter", problem, param="idempotency_key")
    return await generate(
        front,
        request,
        partial(to_generation, params),
        stream=partial(_stream, front, after=-1) if params.stream else None,
        answer=partial(_answer, front),
    )


async def _answer(front: Front, live: Live, end: Ended) -> responses_object.Response:
    if end.outcome == "failed":
        structure = "" if live.job.sampling.structured is None else "text.format"
        raise of_end(end.code, end.message, structure)
    return await snapshot(front, live)


async def retrieve(front: Front, request: Request, response_id: str) -> Response:
    """``?stream=true&starting_after=N``: the events behind number N, of a response of any gateway."""
    after = _asked_after(request.query_params)
    live = await attach(front, caller_of(request), response_id)
    if after is None:
        return json_answer(await snapshot(front, live), live)
    RESUMES.inc()
    live.resumed += 1
    return _stream(front, live, after=after)


def _asked_after(query: QueryParams) -> int | None:
    """Behind which number the events are asked for; None: the response as it stands."""
    for name in query:
        if name in ("include", "include[]"):
            problem = "include: say it when the response is created; leave it out."
            raise HeadraceError("unsupported_parameter", problem, param="include")
        if name not in _RETRIEVE:
            raise unknown_parameter(name, _RETRIEVE)
    if _truth(query, "include_obfuscation"):
        problem = "include_obfuscation: events are never padded; leave it out."
        raise HeadraceError("unsupported_parameter", problem, param="include_obfuscation")
    after = query.get("starting_after")
    if not _truth(query, "stream"):
        if after is not None:
            problem = "starting_after needs stream=true."
            raise HeadraceError("invalid_request", problem, param="starting_after")
        return None
    if after is None or after == "-1":
        return -1
    if not (after.isascii() and after.isdigit() and len(after) <= 15):
        problem = "starting_after: give a sequence_number."
        raise HeadraceError("invalid_value", problem, param="starting_after")
    return int(after)


def _truth(query: QueryParams, name: str) -> bool:
    value = _TRUTH.get(query.get(name, "false").lower())
    if value is None:
        raise HeadraceError("invalid_value", f"{name}: say true or false.", param=name)
    return value


async def cancel(front: Front, request: Request, response_id: str) -> Response:
    """Answers when the response has ended; cancelling what has ended changes nothing."""
    with front.answering(new=False):
        caller = caller_of(request)
        await cancel_response(front, caller, response_id)
        live = await attach(front, caller, response_id)
        await until_ended(front, live)
        return json_answer(await snapshot(front, live), live)


class Deleted(msgspec.Struct, frozen=True):
    id: str
    deleted: Literal[True] = True
    object: Literal["response"] = "response"


async def delete(front: Front, request: Request, response_id: str) -> Response:
    """One that runs is cancelled."""
    await delete_response(front, caller_of(request), response_id)
    return Response(msgspec.json.encode(Deleted(response_id)), media_type="application/json")


async def input_items(front: Front, request: Request, response_id: str) -> Response:
    """What the request itself said: not its instructions, nor what its conversation remembered."""
    job = await request_of(front, caller_of(request), response_id)
    said = said_in(job)
    if responses_object.head(job).echo.instructions:
        said = said[1:]
    answer = responses_object.item_id(job.response)
    items = [found for n, message in enumerate(said) for found in items_of(f"{answer}_{n}", message)]
    return listed(items, request.query_params)


def _stream(front: Front, live: Live, *, after: int) -> Response:
    events = events_of(front, live, after=after)

    def frames(update: Update) -> bytes:
        return b"".join(map(_frame, events.feed(update)))

    return EventStream(
        front,
        [Source(live, frames, first_token(live, after))],
        opening=b"".join(map(_frame, events.opening())),
        failed=_failed,
        headers=headers_of(live),
    )


def _frame(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.type.encode(), msgspec.json.encode(event))


class StreamError(msgspec.Struct, frozen=True):
    """``openai.types.responses.ResponseErrorEvent``"""

    code: str
    message: str
    sequence_number: int = 0
    param: None = None
    type: str = "error"


def _failed(error: HeadraceError) -> bytes:
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(StreamError(error.code, error.message))
