"""Structured output on the real vLLM: what is asked for comes, and what cannot be is refused by name."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from tests.e2e.stack import Stack

MODEL = "SmolLM2-135M-Instruct"
MESSAGES: list[Any] = [
    {"role": "user", "content": "Name a city in France and say whether it is the capital."}
]

pytestmark = pytest.mark.timeout(600)  # the first start prepares the model


class City(BaseModel):
    name: str = Field(max_length=12)
    capital: bool


SCHEMA = City.model_json_schema()
NONSENSE: Any = {"type": "json_schema", "schema": {"type": "nonsense"}}


@pytest.fixture
async def client(real_stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{real_stack.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


async def test_chat_completions_follow_a_schema(client: AsyncOpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 60, "temperature": 0}
    asked = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    whole = await client.chat.completions.create(**ask, response_format=asked)
    assert whole.choices[0].finish_reason == "stop"
    assert City.model_validate_json(whole.choices[0].message.content or "").name
    parsed = await client.chat.completions.parse(**ask, response_format=City)
    assert isinstance(parsed.choices[0].message.parsed, City)
    text = ""
    async for chunk in await client.chat.completions.create(**ask, response_format=asked, stream=True):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content


async def test_responses_follow_a_schema_and_repeat_it(client: AsyncOpenAI) -> None:
    given: dict[str, Any] = {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}
    response = await client.responses.create(
        model=MODEL,
        input=MESSAGES[0]["content"],
        temperature=0,
        max_output_tokens=60,
        text={"format": given},
    )
    assert response.status == "completed"
    assert City.model_validate_json(response.output_text).name
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.to_dict() == given | {"description": None}
    free = await client.responses.create(
        model=MODEL,
        input="Answer in JSON: how are you?",
        temperature=0,
        max_output_tokens=16,
        text={"format": {"type": "json_object"}},
    )
    assert free.output_text.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}, "[0-9]{3}-[a-f]{2}"),
        ({"guided_grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"guided_json": {"const": "so"}}, '"so"'),
    ],
)
async def test_completions_in_vllms_words(client: AsyncOpenAI, asked: dict[str, Any], pattern: str) -> None:
    made = await client.completions.create(
        model=MODEL, prompt="I think", max_tokens=20, n=2, extra_body=asked
    )
    assert [choice.finish_reason for choice in made.choices] == ["stop", "stop"]
    for choice in made.choices:
        assert re.fullmatch(pattern, choice.text), choice.text


@pytest.mark.parametrize(
    "asked",
    [
        {"guided_regex": "("},
        {"structured_outputs": {"grammar": "no grammar"}},
        {"guided_json": {"type": "nonsense"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"$ref": "#/no"}},
            }
        },
        {"guided_regex": "(" * 20_000 + ")" * 20_000},
    ],
)
async def test_what_cannot_be_followed_is_refused_by_name_and_harms_nobody(
    client: AsyncOpenAI, asked: dict[str, Any]
) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 4}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**ask, extra_body=asked)
    assert (refused.value.code, refused.value.param) == ("engine_rejected", next(iter(asked)))
    with pytest.raises(openai.APIError) as told:
        async for _ in await client.chat.completions.create(**ask, extra_body=asked, stream=True):
            pass
    assert (told.value.code, told.value.param) == ("engine_rejected", next(iter(asked)))
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model=MODEL, input="x", text={"format": {**NONSENSE, "name": "n"}})
    assert (refused.value.code, refused.value.param) == ("engine_rejected", "text.format")
    good = await client.chat.completions.create(**ask)
    assert good.choices[0].message.content


async def test_vllms_parameters_do_what_they_say(client: AsyncOpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 6}
    as_ids = {"return_tokens_as_token_ids": True}
    plain = await client.completions.create(**ask, temperature=0, logprobs=5, extra_body=as_ids)
    assert "Paris" in plain.choices[0].text
    logprobs = plain.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.top_logprobs[0]) == 5
    ids = [int(token.removeprefix("token_id:")) for token in logprobs.tokens]
    without = await client.completions.create(**ask, temperature=0, extra_body={"bad_words": ["Paris"]})
    assert "Paris" not in without.choices[0].text
    only = await client.completions.create(
        **ask, logprobs=0, seed=1, extra_body={**as_ids, "allowed_token_ids": ids[:2], "ignore_eos": True}
    )
    assert only.choices[0].logprobs is not None
    assert {f"token_id:{i}" for i in ids[:2]} >= set(only.choices[0].logprobs.tokens or ())
    biased = await client.completions.create(
        **ask, temperature=0, logprobs=0, logit_bias={str(ids[1]): 100}, extra_body=as_ids
    )
    assert biased.choices[0].logprobs is not None
    assert biased.choices[0].logprobs.tokens == [f"token_id:{ids[1]}"] * 6


async def test_choices_differ_by_their_seeds(client: AsyncOpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 16, "temperature": 1}
    three = await client.chat.completions.create(**ask, n=3, seed=20)
    texts = [choice.message.content for choice in three.choices]
    assert len(set(texts)) == 3
    second = await client.chat.completions.create(**ask, seed=21)
    assert second.choices[0].message.content == texts[1]


async def test_a_message_is_continued(client: AsyncOpenAI) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is"},
    ]
    going_on = {"add_generation_prompt": False, "continue_final_message": True}
    answer = await client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=6, extra_body=going_on
    )
    assert (answer.choices[0].message.content or "").startswith(" Paris")
