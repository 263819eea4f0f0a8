"""The clients: each asks for one response after the other and behaves as the seed says.

Most use the product's own client, which reconnects, resumes and repeats by itself; some hang up and come
back at another gateway, over HTTP or slowly, some leave for good, some cancel, some ask twice at once.
Whatever they see goes into their ``Call``. Must not judge it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from itertools import count
from typing import Any

import httpx

from gateway.client import Client, ResponseError
from tests.chaos.calls import Behaviour, Call
from tests.chaos.world import http_client, now_ms

# Refusals that a client of a troubled system must expect. Nothing was accepted, so nothing is owed.
EXPECTED_REFUSALS = (
    "broker_unavailable",
    "conversation_busy",
    "going_away",
    "no_worker",
    "queue_full",
    "unreachable",
)
BEHAVIOURS: dict[Behaviour, float] = {
    "plain": 52,
    "returns": 12,
    "elsewhere": 8,
    "leaves": 8,
    "cancels": 12,
    "twins": 4,
    "slow": 4,
}
LONG = {"max_output_tokens": 600, "ignore_eos": True}  # so that there is something to cancel
FILLING = {"max_output_tokens": 4000, "ignore_eos": True}
FILL_LIMIT_S = 30.0
STOPS = (" water", " river", " quiet")
RETRY_S = 0.2


class Load:
    """``calls``: all that was asked, in order. ``call_limit_s``: a response without an end after this is a
    failure of its client. ``behaviours``: shares, by weight."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        seed: str,
        clients: int,
        grace_s: float,
        call_limit_s: float = 120,
        behaviours: Mapping[Behaviour, float] = BEHAVIOURS,
    ) -> None:
        self.calls: list[Call] = []
        self._urls = list(urls)
        self._seed = seed
        self._clients = clients
        self._grace_s = grace_s
        self._call_limit_s = call_limit_s
        self._behaviours = behaviours
        self._numbers = count()

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set and everyone has what was asked for."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._client(number, stop), name=f"client {number}")

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        await asyncio.sleep(rng.uniform(0, 0.5))
        while not stop.is_set():
            behaviour = rng.choices(list(self._behaviours), list(self._behaviours.values()))[0]
            urls = rng.sample(self._urls, len(self._urls))
            await self._ask(behaviour, urls, rng, f"client {number}")
            with suppress(TimeoutError):
                async with asyncio.timeout(rng.expovariate(10)):
                    await stop.wait()

    async def _ask(self, behaviour: Behaviour, urls: list[str], rng: random.Random, who: str) -> None:
        call = self._call(behaviour, _params(behaviour, rng, who))
        match behaviour:
            case "plain":
                work = [self._plain(call, urls)]
            case "cancels":
                work = [self._cancels(call, urls, rng.choice((0, rng.uniform(0, 1.5))))]
            case "leaves":
                work = [self._leaves(call, urls, _events(rng))]
            case "twins":
                twin = self._call(behaviour, call.params)
                call.twin = twin.number
                key = f"key {self._seed} {call.number}"
                same = {"key": key, "question": _question(call)}
                work = [self._plain(call, urls, **same), self._plain(twin, urls[::-1], **same)]
            case _:
                away_s = rng.uniform(0, self._grace_s * 0.4)
                work = [self._comes_back(call, urls, rng, _events(rng), away_s)]
        await asyncio.gather(*work)

    def _call(self, behaviour: Behaviour, params: Mapping[str, Any]) -> Call:
        call = Call(next(self._numbers), behaviour, params)
        self.calls.append(call)
        return call

    async def fill(self, slots: int, full: Callable[[], Awaitable[bool]]) -> None:
        """So many responses at once, until ``full`` says that they all run; then they are cancelled."""
        calls = [self._call("cancels", FILLING) for _ in range(slots)]
        filled = asyncio.Event()

        async def one(call: Call, client: Client) -> None:
            async with _Guard(call, self._call_limit_s):
                stream = client.stream(input=_question(call), **call.params)
                reading = asyncio.create_task(_take(call, stream), name=f"read {call.number}")
                try:
                    await filled.wait()
                    if call.id:
                        call.cancel_ms = now_ms()
                        await client.cancel(call.id)
                        await reading
                finally:
                    reading.cancel()
                    await asyncio.wait({reading})

        async with Client(self._urls) as client, asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(one(call, client), name=f"fill {call.number}")
            try:
                async with asyncio.timeout(FILL_LIMIT_S):
                    while not all(call.id for call in calls) or not await full():
                        await asyncio.sleep(RETRY_S)
            except TimeoutError:
                calls[0].failure = f"not all of {slots} slots could be filled in {FILL_LIMIT_S:.0f} s"
            filled.set()

    # -- what they do ---------------------------------------------------------------------------------

    async def _plain(
        self, call: Call, urls: list[str], *, key: str | None = None, question: str = ""
    ) -> None:
        async with _Guard(call, self._call_limit_s), _client(call, urls) as client:
            asked = question or _question(call)
            await _take(call, client.stream(input=asked, idempotency_key=key, **call.params))

    async def _leaves(self, call: Call, urls: list[str], after: int) -> None:
        """For good: the gateway has to find out."""
        async with _Guard(call, self._call_limit_s):
            async with _client(call, urls) as client:
                await _take(call, client.stream(input=_question(call), **call.params), after)
            if not call.ended:
                call.left_ms = now_ms()

    async def _cancels(self, call: Call, urls: list[str], after_s: float) -> None:
        async with _Guard(call, self._call_limit_s), _client(call, urls) as client:
            accepted = asyncio.Event()

            async def cancel() -> None:
                await accepted.wait()
                await asyncio.sleep(after_s)
                call.cancel_ms = now_ms()
                await client.cancel(call.id)

            cancelling = asyncio.create_task(cancel(), name=f"cancel {call.number}")
            try:
                async with aclosing(client.stream(input=_question(call), **call.params)) as events:
                    async for event in events:
                        call.see(event)
                        accepted.set()
                if call.cancel_ms is not None:
                    await cancelling
            finally:
                cancelling.cancel()
                await asyncio.wait({cancelling})

    async def _comes_back(
        self, call: Call, urls: list[str], rng: random.Random, after: int, away_s: float
    ) -> None:
        async with _Guard(call, self._call_limit_s):
            async with _client(call, urls) as client:
                await _take(call, client.stream(input=_question(call), **call.params), after)
            if call.ended:
                return
            await asyncio.sleep(away_s)
            elsewhere = [*urls[1:], urls[0]]
            if call.behaviour == "returns":
                async with _client(call, elsewhere) as client:
                    await _take(call, client.resume(call.id, starting_after=call.cursor))
            else:
                pause_s = rng.uniform(0.02, 0.08) if call.behaviour == "slow" else 0.0
                await _follow(call, elsewhere, pause_s)


class _Guard:
    """Turns what stops a client into the evidence for it, and ends what lasts too long."""

    def __init__(self, call: Call, limit_s: float) -> None:
        self._call = call
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: Any) -> bool:
        call = self._call
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError:
            call.failure = f"no end within {self._limit_s:.0f} s"
            return True
        match raised[1]:
            case None:
                return True
            case ResponseError() as error if not call.id and error.code in EXPECTED_REFUSALS:
                call.refused = error.code
                return True
            case ResponseError() | httpx.HTTPError() as error:
                call.failure = f"{type(error).__name__}: {error}"
                return True
        return False


def _client(call: Call, urls: list[str]) -> Client:
    def note(kind: str, detail: Mapping[str, Any]) -> None:
        call.notices.append((now_ms(), f"{kind} {dict(detail)}"))

    return Client(urls, on_notice=note, ping_interval_s=2, ping_timeout_s=3, connect_timeout_s=2)


async def _take(call: Call, stream: Any, at_most: int | None = None) -> None:
    """Its events, to the end or the first ``at_most``; the response's id comes with the first."""
    async with aclosing(stream) as events:
        async for event in events:
            call.see(event)
            if at_most is not None and call.id and len(call.seen) >= at_most:
                return


async def _follow(call: Call, urls: list[str], pause_s: float) -> None:
    """``GET /v1/responses/{id}?stream=true&starting_after=N``, again at the next gateway until the end."""
    turn = 0
    async with http_client(httpx.Timeout(8, connect=2)) as http:
        while not call.ended:
            url = f"{urls[turn % len(urls)]}/v1/responses/{call.id}"
            turn += 1
            query = {"stream": "true", "starting_after": str(call.cursor)}
            try:
                async with http.stream("GET", url, params=query) as answer:
                    if answer.status_code == 200:
                        call.notices.append((now_ms(), f"follows over HTTP at {url} behind {call.cursor}"))
                        await _read_events(call, answer, pause_s)
                    elif answer.status_code < 500:
                        body = (await answer.aread()).decode(errors="replace")
                        call.failure = f"HTTP {answer.status_code}: {body}"
                        return
            except httpx.HTTPError as error:
                call.notices.append((now_ms(), f"HTTP broke off: {error!r}"))
            if not call.ended:
                await asyncio.sleep(RETRY_S)


async def _read_events(call: Call, answer: httpx.Response, pause_s: float) -> None:
    async for event in _events_of(answer):
        if event["type"] == "error":
            return
        call.see(event)
        if pause_s:
            await asyncio.sleep(pause_s)


async def _events_of(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def _events(rng: random.Random) -> int:
    """After how many events a client goes: often before the first token."""
    return rng.choice((1, 2, rng.randint(3, 40), rng.randint(3, 40)))


def _question(call: Call) -> str:
    return f"question {call.number}"


def _params(behaviour: Behaviour, rng: random.Random, who: str) -> dict[str, Any]:
    if behaviour in ("leaves", "cancels"):
        return dict(LONG)
    params: dict[str, Any] = {"max_output_tokens": rng.choice((5, 60, 200, 400))}
    if rng.random() < 0.4:
        params["temperature"] = 0
    if rng.random() < 0.3:
        params["seed"] = rng.randrange(1 << 30)
    if rng.random() < 0.2:
        params["min_tokens"] = rng.randint(1, 5)
    if rng.random() < 0.08:
        params["stop"] = rng.choice(STOPS)
    if rng.random() < 0.08:
        params |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    if behaviour == "plain" and rng.random() < 0.2:
        params["conversation"] = f"{who}, chat {rng.randrange(3)}"
    return params
