"""Several answers to one request: sibling responses, each a job of its own, accepted together or not at all,
and given up together. Must not know any API's JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.correlation import traceparent
from gateway.api.front import Front, caller_of
from gateway.api.http_request import (
    as_asked,
    give_up_all,
    idempotency_key,
    json_answer,
    received_unix_ms,
    submit,
    until_ended_for,
)
from gateway.generation import Ended, Generation
from gateway.live import Live
from gateway.router import estimate_request
from schemas.errors import HeadraceError
from schemas.job import Route
from schemas.reply import Usage
from schemas.sampling import Sampling

_SEEDS = 1 << 64
_BAD = ("failed", "cancelled")


def siblings(generations: Sequence[Generation], count: int) -> list[Generation]:
    """``count`` of each. Those of one differ in their seeds only, if one is given: they do not depend on
    each other."""
    return [
        replace(
            generation,
            sampling=_seeded(generation.sampling, i),
            sibling=(nth * count + i, len(generations) * count),
            # asked for several answers, nobody wants the same one again
            cache="off" if i and generation.cache == "on" else generation.cache,
        )
        for nth, generation in enumerate(generations)
        for i in range(count)
    ]


def _seeded(sampling: Sampling, i: int) -> Sampling:
    if sampling.seed is None or i == 0:
        return sampling
    seed = (sampling.seed + i + _SEEDS // 2) % _SEEDS - _SEEDS // 2  # seeds are 64-bit integers
    return replace(sampling, seed=seed)


async def generate_choices(
    front: Front,
    request: Request,
    to_generations: Callable[..., list[Generation]],
    *,
    stream: Callable[[list[Live]], Awaitable[Response]] | None,
    answer: Callable[[list[Live]], Awaitable[msgspec.Struct]],
    failure: Callable[[Ended], HeadraceError],
    names: Mapping[str, str],
) -> Response:
    """As ``http_request.generate``, for a request that several responses answer. ``x-request-id`` is the
    first one's id; ``failure`` says what went wrong with one of them, which ends all. Raises
    ``HeadraceError``, ``ClientGone``."""
    generations = to_generations(
        caller=caller_of(request),
        limits=front.limits,
        received_unix_ms=received_unix_ms(request),
        traceparent=traceparent(request),
    )
    generations = [as_asked(request, generation) for generation in generations]
    if (key := idempotency_key(request)) is not None:
        generations = [replace(g, idempotency_key=_key_of(key, i)) for i, g in enumerate(generations)]
    with front.answering():
        lives = await _submit_all(front, generations, names)
        if stream is not None:
            return await stream(lives)
        await until_ended_for(front, lives, request)
        bad = [live.end for live in lives if live.end is not None and live.end.outcome in _BAD]
        if bad:
            await give_up_all(front, lives)
            raise failure(bad[0])
        return json_answer(await answer(lives), lives[0])


async def _submit_all(
    front: Front, generations: Sequence[Generation], names: Mapping[str, str]
) -> list[Live]:
    """The model that is chosen for the longest prompt answers all: one answer names one model."""
    if len(generations) == 1:
        return [await submit(front, generations[0], names)]
    longest = max(range(len(generations)), key=lambda i: estimate_request(generations[i]))
    lives = {longest: await submit(front, generations[longest], names)}
    first = lives[longest]
    routed = (first.model_name, first.job.presentation.route or Route())

    async def one(i: int, generation: Generation) -> None:
        lives[i] = await submit(front, generation, names)

    try:
        async with asyncio.TaskGroup() as tasks:
            for i, generation in enumerate(generations):
                if i != longest:
                    tasks.create_task(one(i, replace(generation, routed=routed)), name=f"submit-choice-{i}")
    except BaseExceptionGroup as group:
        await give_up_all(front, lives.values())
        raise group.exceptions[0] from group
    return [lives[i] for i in range(len(generations))]


def _key_of(key: str, i: int) -> str:
    """A header has no line breaks, so no other request has this key."""
    return key if i == 0 else f"{key}\n{i}"


def usage_so_far(live: Live) -> Usage:
    return Usage(prompt_tokens=len(live.job.prompt_ids), completion_tokens=live.total)


class UsageTally:
    """The usage of all choices. A prompt counts once, however many choices it has, as at OpenAI; of its
    siblings the first tells what was cached. ``reasoning_tokens``: of those that have ended."""

    def __init__(self, responses: int, *, choices: int) -> None:
        self._waiting = responses
        self._choices = choices
        self._sum = Usage()
        self.reasoning_tokens = 0

    def add(self, index: int, end: Ended) -> Usage | None:
        """The sum, once all have ended."""
        usage, first = end.usage, index % self._choices == 0
        self.reasoning_tokens += end.reasoning_tokens
        self._sum = Usage(
            prompt_tokens=self._sum.prompt_tokens + (usage.prompt_tokens if first else 0),
            cached_tokens=self._sum.cached_tokens + (usage.cached_tokens if first else 0),
            completion_tokens=self._sum.completion_tokens + usage.completion_tokens,
        )
        self._waiting -= 1
        return None if self._waiting else self._sum
