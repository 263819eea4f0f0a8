"""``POST /v1/chat/completions``, as JSON or as a stream of chunks."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.chat_events import DONE, ChatChunks, completion
from gateway.api.errors import http_body
from gateway.api.event_stream import EventStream
from gateway.api.front import OPEN_TENANT, Front
from gateway.api.http_request import json_answer, now_ms, read_object, traceparent, until_ended
from gateway.api.parse_chat import ChatCompletion, chat_generation, parse_chat
from gateway.api.token_logprobs import Spelling, show
from gateway.live import Live


async def create(front: Front, request: Request) -> Response:
    """Raises ``HeadraceError``, ``ClientGone``."""
    chat = parse_chat(await read_object(request, front.limits.max_message_bytes))
    generation = chat_generation(
        chat,
        tenant=OPEN_TENANT,
        limits=front.limits,
        received_unix_ms=now_ms(),
        traceparent=traceparent(request),
    )
    with front.answering():
        live = await front.pipeline.submit(generation)
        if chat.stream:
            return _stream(front, live, chat)
        end = await until_ended(live, request)
    spelling = Spelling(live.token_text, live.token_bytes)
    logprobs = show(live.ids, live.log.logprobs, spelling) if chat.logprobs else None
    body = completion(
        live.response_id, live.created_unix_ms // 1000, live.model_name, live.text, end, logprobs
    )
    return json_answer(body, live)


def _stream(front: Front, live: Live, chat: ChatCompletion) -> Response:
    options = chat.stream_options
    chunks = ChatChunks(
        live.response_id,
        live.created_unix_ms // 1000,
        live.model_name,
        Spelling(live.token_text, live.token_bytes),
        include_usage=bool(options and options.include_usage),
        include_logprobs=bool(chat.logprobs),
    )
    return EventStream(
        front,
        live.reader(),
        opening=b"",
        frames=chunks.feed,
        failed=lambda error: b"data: " + http_body(error) + b"\n\n" + DONE,
        headers={"x-request-id": live.response_id},
    )
