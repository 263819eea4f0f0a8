"""The Responses API over HTTP: create (JSON or stream), retrieve, resume, cancel."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker.metrics import RESUMES
from gateway.api.errors import of_end
from gateway.api.event_stream import EventStream
from gateway.api.front import OPEN_TENANT, Front
from gateway.api.http_request import json_answer, now_ms, read_object, traceparent, until_ended
from gateway.api.parse_json import unknown_parameter
from gateway.api.parse_responses import parse_create, to_generation
from gateway.api.responses_events import Event, seen_tokens
from gateway.api.responses_view import events_of, find, snapshot
from gateway.generation import Update
from gateway.live import Live
from schemas.errors import HeadraceError

_RETRIEVE = {"stream", "starting_after", "include", "include_obfuscation"}


async def create(front: Front, request: Request) -> Response:
    """Raises ``HeadraceError``, ``ClientGone``."""
    params = parse_create(await read_object(request, front.limits.max_message_bytes))
    if params.stream_id is not None:
        raise HeadraceError(
            "unsupported_parameter", "stream_id is for WebSockets: leave it out.", param="stream_id"
        )
    generation = to_generation(
        params,
        tenant=OPEN_TENANT,
        limits=front.limits,
        received_unix_ms=now_ms(),
        traceparent=traceparent(request),
    )
    with front.answering():
        live = await front.pipeline.submit(generation)
        if params.stream:
            return _stream(front, live, after=-1)
        end = await until_ended(live, request)
    if end.outcome == "failed":
        raise of_end(end.code, end.message)
    return json_answer(snapshot(live), live)


async def retrieve(front: Front, request: Request, response_id: str) -> Response:
    """``?stream=true&starting_after=N``: the events behind number N, of a response this gateway holds."""
    live = find(front, response_id)
    for name in request.query_params:
        if name not in _RETRIEVE:
            raise unknown_parameter(name, _RETRIEVE)
    if request.query_params.get("stream", "false").lower() not in ("true", "1"):
        return json_answer(snapshot(live), live)
    after = request.query_params.get("starting_after", "-1")
    if not after.removeprefix("-").isdecimal() or len(after) > 15:
        raise HeadraceError(
            "invalid_value", "starting_after: give a sequence_number.", param="starting_after"
        )
    RESUMES.inc()
    return _stream(front, live, after=int(after))


async def cancel(front: Front, response_id: str) -> Response:
    """Answers when the response has ended; cancelling what has ended changes nothing."""
    live = find(front, response_id)
    reader = live.reader()
    try:
        await front.pipeline.cancel(live.response_id, OPEN_TENANT)
        while await reader.next():
            pass
    finally:
        reader.close()
    return json_answer(snapshot(live), live)


def _stream(front: Front, live: Live, *, after: int) -> Response:
    events = events_of(live, after=after)

    def frames(update: Update) -> bytes:
        return b"".join(map(_frame, events.feed(update)))

    return EventStream(
        front,
        live.reader(seen_tokens(after)),
        opening=b"".join(map(_frame, events.opening())),
        frames=frames,
        failed=_failed,
        headers={"x-request-id": live.response_id},
    )


def _frame(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.type.encode(), msgspec.json.encode(event))


class _StreamError(msgspec.Struct, frozen=True):
    """``openai.types.responses.ResponseErrorEvent``"""

    code: str
    message: str
    sequence_number: int = 0
    param: None = None
    type: str = "error"


def _failed(error: HeadraceError) -> bytes:
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(_StreamError(error.code, error.message))
