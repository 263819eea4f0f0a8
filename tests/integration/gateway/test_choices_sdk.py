"""Completions, several choices and vLLM's parameters with the official SDK, on a real gateway with the
simulated engine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, Process, gateway

LIMIT_S = 30
TOKENS = 12
SAID: dict[str, Any] = {"messages": [{"role": "user", "content": "the same"}], "max_tokens": TOKENS}


@pytest.fixture
async def client(served: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S
    ) as made:
        yield made


@pytest.fixture
async def model(client: AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


async def test_a_completion_whole_and_in_chunks(client: AsyncOpenAI, model: str) -> None:
    ask: dict[str, Any] = {
        "model": model,
        "prompt": "Once upon a time",
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    whole = await client.completions.create(**ask)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == TOKENS
    assert whole.usage.prompt_tokens > 0
    stream = await client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == whole.choices[0].text
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    short = await client.completions.create(model=model, prompt="x")
    assert short.usage is not None
    assert short.usage.completion_tokens == 16


async def test_echo_and_log_probabilities(client: AsyncOpenAI, model: str) -> None:
    ask: dict[str, Any] = {"model": model, "prompt": "Once upon", "max_tokens": TOKENS, "temperature": 0}
    plain = (await client.completions.create(**ask)).choices[0]
    echoed = (await client.completions.create(**ask, echo=True)).choices[0]
    assert echoed.text == "Once upon" + plain.text
    told = (await client.completions.create(**ask, logprobs=2)).choices[0]
    assert told.text == plain.text
    assert told.logprobs is not None
    assert told.logprobs.tokens is not None
    assert len(told.logprobs.tokens) == TOKENS
    assert told.logprobs.text_offset is not None
    assert told.logprobs.text_offset[0] == 0
    ids = (
        await client.completions.create(**ask, logprobs=0, extra_body={"return_tokens_as_token_ids": True})
    ).choices[0]
    assert ids.logprobs is not None
    assert ids.logprobs.tokens is not None
    assert all(re.fullmatch(r"token_id:\d+", token) for token in ids.logprobs.tokens)


async def test_token_ids_are_a_prompt_and_continue_themselves(client: AsyncOpenAI, model: str) -> None:
    """The simulated engine's next token depends on all before it: a prompt of the completion's own tokens
    goes on as the longer completion did."""
    as_ids = {"return_tokens_as_token_ids": True}
    prompt = [300, 301, 302]
    ask: dict[str, Any] = {"model": model, "temperature": 0, "logprobs": 0, "extra_body": as_ids}
    whole = (await client.completions.create(**ask, prompt=prompt, max_tokens=10)).choices[0].logprobs
    assert whole is not None
    assert whole.tokens is not None
    ids = [int(token.removeprefix("token_id:")) for token in whole.tokens]
    rest = (await client.completions.create(**ask, prompt=[*prompt, *ids[:4]], max_tokens=6)).choices[0]
    assert rest.logprobs is not None
    assert rest.logprobs.tokens == whole.tokens[4:]
    echoed = await client.completions.create(model=model, prompt=prompt, max_tokens=1, echo=True)
    assert len(echoed.choices[0].text) > 3


async def test_prompts_times_choices(client: AsyncOpenAI, model: str) -> None:
    ask: dict[str, Any] = {"model": model, "prompt": ["a", "b"], "n": 2, "max_tokens": TOKENS, "seed": 3}
    whole = await client.completions.create(**ask)
    assert [c.index for c in whole.choices] == [0, 1, 2, 3]
    assert len({c.text for c in whole.choices}) == 4
    alone = await client.completions.create(model=model, prompt="b", max_tokens=TOKENS, seed=4)
    assert alone.choices[0].text == whole.choices[3].text
    assert whole.usage is not None
    assert alone.usage is not None
    assert whole.usage.completion_tokens == 4 * TOKENS
    assert whole.usage.prompt_tokens == 2 * alone.usage.prompt_tokens
    texts = dict.fromkeys(range(4), "")
    order = []
    async for chunk in await client.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            order.append(choice.index)
    assert [texts[c.index] for c in whole.choices] == [c.text for c in whole.choices]
    assert order != sorted(order), "they came one after the other"


async def test_several_choices_of_a_chat(client: AsyncOpenAI, model: str) -> None:
    ask: dict[str, Any] = {"model": model, **SAID, "n": 3, "seed": 11}
    answer = await client.chat.completions.with_raw_response.create(**ask)
    whole = answer.parse()
    assert [c.index for c in whole.choices] == [0, 1, 2]
    assert len({c.message.content for c in whole.choices}) == 3
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 3 * TOKENS
    second = await client.chat.completions.create(model=model, **SAID, seed=12)
    assert second.choices[0].message.content == whole.choices[1].message.content
    assert second.usage is not None
    assert second.usage.prompt_tokens == whole.usage.prompt_tokens
    first = await client.responses.retrieve(answer.headers["x-request-id"])
    assert first.output_text == whole.choices[0].message.content
    texts = ["", "", ""]
    stream = await client.chat.completions.create(
        **ask, logprobs=True, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [c.message.content for c in whole.choices]
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_repeated_request_is_given_the_same_choices(client: AsyncOpenAI, model: str) -> None:
    ask: dict[str, Any] = {
        "model": model,
        **SAID,
        "n": 2,
        "extra_headers": {"Idempotency-Key": "two of them"},
    }
    texts = [
        [c.message.content for c in (await client.chat.completions.create(**ask)).choices] for _ in range(2)
    ]
    assert texts[0] == texts[1]
    with pytest.raises(openai.ConflictError) as conflict:
        await client.chat.completions.create(**{**ask, "n": 3})
    assert conflict.value.code == "idempotency_conflict"


async def test_fewer_prompts_are_another_request(client: AsyncOpenAI, model: str) -> None:
    ask: dict[str, Any] = {
        "model": model,
        "max_tokens": TOKENS,
        "extra_headers": {"Idempotency-Key": "prompts"},
    }
    both = await client.completions.create(**ask, prompt=["a", "b"])
    again = await client.completions.create(**ask, prompt=["a", "b"])
    assert [choice.text for choice in again.choices] == [choice.text for choice in both.choices]
    with pytest.raises(openai.ConflictError) as conflict:
        await client.completions.create(**ask, prompt=["a"])
    assert conflict.value.code == "idempotency_conflict"


async def test_a_message_is_continued(client: AsyncOpenAI, model: str) -> None:
    messages: list[Any] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "well then"}]
    ask: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
    anew = await client.chat.completions.create(**ask)
    shown = {"add_generation_prompt": False}
    closed = await client.chat.completions.create(**ask, extra_body=shown)
    going_on = await client.chat.completions.create(
        **ask, extra_body={**shown, "continue_final_message": True}
    )
    lengths = [answer.usage.prompt_tokens for answer in (going_on, closed, anew) if answer.usage]
    assert lengths == sorted(set(lengths))
    assert len(lengths) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}},
            }
        },
        {"extra_body": {"structured_outputs": {"regex": "a+"}}},
        {"extra_body": {"guided_choice": ["yes", "no"]}},
    ],
)
async def test_structure_is_refused_where_the_engine_has_none(
    client: AsyncOpenAI, model: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model=model, **SAID, **fields)
    asked = fields.get("extra_body", fields)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", next(iter(asked)))
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model=model, input="x", text={"format": {"type": "json_object"}})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "text.format")


async def test_refusals_name_the_field_of_this_api(client: AsyncOpenAI, model: str) -> None:
    for fields, code, param in (
        ({"prompt": "x " * 40_000}, "context_length_exceeded", "prompt"),
        ({"prompt": "x", "max_tokens": 1_000_000}, "context_length_exceeded", "max_tokens"),
        ({"prompt": [1 << 30]}, "invalid_token_id", "prompt"),
        ({"prompt": "x", "suffix": "y"}, "unsupported_parameter", "suffix"),
        ({"prompt": ["x", "x " * 40_000]}, "context_length_exceeded", "prompt"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model=model, **fields)  # type: ignore[call-overload]
        assert (refused.value.code, refused.value.param) == (code, param)


async def test_a_client_that_leaves_takes_all_its_choices_with_it(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, sim_worker: Process, tmp_path: Path
) -> None:
    """At a gateway whose grace time is longer than the test: of several choices nobody could resume any."""
    with gateway(shared_nats_server, shared_redis_server, tmp_path, disconnect_grace_s=600) as patient:
        async with AsyncOpenAI(base_url=f"{patient.url}/v1", api_key="none", timeout=LIMIT_S) as client:
            model = (await client.models.list()).data[0].id
            ask: dict[str, Any] = {"model": model, "prompt": "long", "n": 4, "max_tokens": 5000}
            async with await client.completions.create(**ask, stream=True) as stream:
                seen: set[int] = set()
                async for chunk in stream:
                    seen |= {choice.index for choice in chunk.choices}
                    if len(seen) == 4:
                        break
            async with asyncio.timeout(LIMIT_S), httpx.AsyncClient(base_url=patient.url) as http:
                while await running_now(http) > 0:
                    await asyncio.sleep(0.05)


async def running_now(http: httpx.AsyncClient) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith("headrace_gateway_requests_running{"))
