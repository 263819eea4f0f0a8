"""``POST /v1/chat/completions``, as JSON or as a stream of chunks."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from gateway.api import chat_events
from gateway.api.chat_events import DONE, ChatChunks, completion
from gateway.api.errors import http_body
from gateway.api.event_stream import EventStream
from gateway.api.front import Front
from gateway.api.http_request import answer_headers, generate, read_object
from gateway.api.parse_chat import ChatCompletion, chat_generation, parse_chat
from gateway.api.token_logprobs import off_loop, show
from gateway.generation import Ended
from gateway.live import Live


async def create(front: Front, request: Request) -> Response:
    """Raises ``HeadraceError``, ``ClientGone``."""
    chat = parse_chat(await read_object(request, front.limits.max_message_bytes))
    limit = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    return await generate(
        front,
        request,
        partial(chat_generation, chat),
        stream=partial(_stream, front, chat) if chat.stream else None,
        answer=partial(_answer, front, chat),
        names={"input": "messages", "max_output_tokens": limit},
    )


async def _answer(front: Front, chat: ChatCompletion, live: Live, end: Ended) -> chat_events.ChatCompletion:
    spelling = front.spellings.of(live)
    logprobs = None
    if chat.logprobs:
        logprobs = await off_loop(live, [end], lambda: show(live.ids, live.log.logprobs, spelling))
    return completion(
        live.response_id, live.created_unix_ms // 1000, live.model_name, live.text, end, logprobs
    )


def _stream(front: Front, chat: ChatCompletion, live: Live) -> Response:
    options = chat.stream_options
    chunks = ChatChunks(
        live.response_id,
        live.created_unix_ms // 1000,
        live.model_name,
        front.spellings.of(live),
        include_usage=bool(options and options.include_usage),
        include_logprobs=bool(chat.logprobs),
    )
    return EventStream(
        front,
        live,
        opening=b"",
        frames=chunks.feed,
        failed=lambda error: b"data: " + http_body(error) + b"\n\n" + DONE,
        headers=answer_headers(live),
    )
