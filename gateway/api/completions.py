"""``POST /v1/completions``: text behind prompts, as JSON or as a stream of chunks."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api import completions_events
from gateway.api.chat_events import DONE, failure, usage
from gateway.api.choices import UsageTally, generate_choices, siblings
from gateway.api.completions_events import CompletionChunks, Spell, choice
from gateway.api.errors import http_body
from gateway.api.event_stream import EventStream, Source
from gateway.api.front import Front
from gateway.api.http_request import headers_of, read_object
from gateway.api.parse_completions import Completion, completion_generations, parse_completion
from gateway.api.parse_structured import of_chat_fields
from gateway.api.token_logprobs import off_loop
from gateway.generation import Generation
from gateway.live import Live


async def create(front: Front, request: Request) -> Response:
    """Choice k of prompt i has the index ``i * n + k``. Raises ``HeadraceError``, ``ClientGone``."""
    asked = parse_completion(await read_object(request, front.limits.max_message_bytes))
    _, structure = of_chat_fields(asked)

    def to_generations(**about: Any) -> list[Generation]:
        return siblings(completion_generations(asked, **about), asked.choices)

    return await generate_choices(
        front,
        request,
        to_generations,
        stream=partial(_stream, front, asked, structure) if asked.stream else None,
        answer=partial(_answer, asked),
        failure=partial(failure, structure=structure),
        names={"input": "prompt", "max_output_tokens": "max_tokens", "text.format": structure},
    )


async def _answer(asked: Completion, lives: list[Live]) -> completions_events.Completion:
    tally, used, choices = UsageTally(len(lives), choices=asked.choices), None, []
    before = await _repeated(asked, lives)
    for i, live in enumerate(lives):
        assert live.end is not None
        shown = partial(choice, live, i, before[i], _spell(asked, live))
        choices.append(await off_loop(live, [live.end], shown))
        used = tally.add(i, live.end)
    assert used is not None
    return completions_events.completion(lives[0], choices, usage(used))


async def _stream(front: Front, asked: Completion, structure: str, lives: list[Live]) -> Response:
    tally = UsageTally(len(lives), choices=asked.choices)
    before = await _repeated(asked, lives)
    sources = [
        Source(
            live,
            CompletionChunks(
                lives[0],
                live,
                i,
                before=before[i],
                spell=_spell(asked, live),
                tally=tally,
                include_usage=asked.include_usage,
                continuous_usage=asked.continuous_usage,
                structure=structure,
            ).feed,
        )
        for i, live in enumerate(lives)
    ]
    return EventStream(
        front,
        sources,
        failed=lambda error: b"data: " + http_body(error) + b"\n\n" + DONE,
        headers=headers_of(lives[0]),
    )


async def _repeated(asked: Completion, lives: list[Live]) -> list[str]:
    """The prompts' texts before the choices, if the client wants them."""
    if not asked.echo:
        return [""] * len(lives)
    texts: list[str] = []
    for i, prompt in enumerate(asked.prompts):
        if not isinstance(prompt, str):
            prompt = await asyncio.to_thread(lives[i * asked.choices].decode, prompt)
        texts += [prompt] * asked.choices
    return texts


def _spell(asked: Completion, live: Live) -> Spell | None:
    if asked.logprobs is None:
        return None
    if asked.return_tokens_as_token_ids:
        return "token_id:{}".format
    return lambda token_id: live.token_bytes(token_id).decode(errors="replace")
