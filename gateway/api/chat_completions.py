"""``POST /v1/chat/completions``, as JSON or as a stream of chunks."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api import chat_events
from gateway.api.chat_events import DONE, ChatChunks, completion, failure
from gateway.api.choices import UsageTally, generate_choices, siblings, usage_so_far
from gateway.api.errors import http_body
from gateway.api.event_stream import EventStream, Source
from gateway.api.front import Front
from gateway.api.http_request import headers_of, read_object
from gateway.api.parse_chat import ChatCompletion, chat_generation, parse_chat
from gateway.api.parse_structured import of_chat_fields
from gateway.api.token_logprobs import Spelling, off_loop, show, spelled_as_ids
from gateway.generation import Generation
from gateway.live import Live


async def create(front: Front, request: Request) -> Response:
    """Raises ``HeadraceError``, ``ClientGone``."""
    chat = parse_chat(await read_object(request, front.limits.max_message_bytes))
    limit = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    _, structure = of_chat_fields(chat)

    def to_generations(**about: Any) -> list[Generation]:
        return siblings([chat_generation(chat, **about)], chat.choices)

    return await generate_choices(
        front,
        request,
        to_generations,
        stream=partial(_stream, front, chat, structure) if chat.stream else None,
        answer=partial(_answer, front, chat),
        failure=partial(failure, structure=structure),
        names={"input": "messages", "max_output_tokens": limit, "text.format": structure},
    )


async def _answer(front: Front, chat: ChatCompletion, lives: list[Live]) -> chat_events.ChatCompletion:
    tally = UsageTally(len(lives), choices=len(lives))
    wholes, used = [], None
    for i, live in enumerate(lives):
        assert live.end is not None
        wholes.append(await _choice(front, chat, live))
        used = tally.add(i, live.end)
    assert used is not None
    choices = [msgspec.structs.replace(whole.choices[0], index=i) for i, whole in enumerate(wholes)]
    return msgspec.structs.replace(
        wholes[0], choices=choices, usage=chat_events.usage(used, tally.reasoning_tokens)
    )


async def _choice(front: Front, chat: ChatCompletion, live: Live) -> chat_events.ChatCompletion:
    end, spelling, logprobs = live.end, _spelling(front, chat, live), None
    assert end is not None
    if chat.logprobs:
        logprobs = await off_loop(live, [end], lambda: show(live.ids, live.log.logprobs, spelling))
    items = live.items if live.is_parsed else None
    created_s = live.created_unix_ms // 1000
    return completion(live.response_id, created_s, live.model_name, live.text, end, logprobs, items)


async def _stream(front: Front, chat: ChatCompletion, structure: str, lives: list[Live]) -> Response:
    tally = UsageTally(len(lives), choices=len(lives))
    first = lives[0]
    sources = [
        Source(
            live,
            ChatChunks(
                first.response_id,
                first.created_unix_ms // 1000,
                first.model_name,
                _spelling(front, chat, live),
                include_usage=chat.include_usage,
                include_logprobs=bool(chat.logprobs),
                index=i,
                tally=tally,
                so_far=partial(usage_so_far, live) if chat.continuous_usage else None,
                structure=structure,
                call_response=live.response_id,
            ).feed,
        )
        for i, live in enumerate(lives)
    ]
    return EventStream(
        front,
        sources,
        failed=lambda error: b"data: " + http_body(error) + b"\n\n" + DONE,
        headers=headers_of(first),
    )


def _spelling(front: Front, chat: ChatCompletion, live: Live) -> Spelling:
    return spelled_as_ids() if chat.return_tokens_as_token_ids else front.spellings.of(live)
