"""The product as it is: SmolLM2 on the real vLLM behind a real queue, spoken to by the official SDK."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway.client import Client
from tests.e2e.stack import Stack

MODEL = "SmolLM2-135M-Instruct"
DEPLOY = Path(__file__).parents[2] / "deploy"
CAPITAL = "What is the capital of France?"

pytestmark = pytest.mark.timeout(600)  # the first start prepares the model


@pytest.fixture
async def client(real_stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{real_stack.url}/v1", api_key="unused") as client:
        yield client


async def ask(client: AsyncOpenAI, question: str, *, conversation: str) -> str:
    response = await client.responses.create(
        model=MODEL, input=question, conversation=conversation, temperature=0, max_output_tokens=40
    )
    assert response.status in ("completed", "incomplete")
    return response.output_text


async def test_websocket_streams_with_the_official_sdk(client: AsyncOpenAI) -> None:
    async with client.responses.connect() as connection:
        await connection.response.create(model=MODEL, input=CAPITAL, temperature=0, max_output_tokens=30)
        kinds: list[str] = []
        text = ""
        cursors: list[int] = []
        async for event in connection:
            kinds.append(event.type)
            if event.type != "response.queued":
                cursors.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type in ("response.completed", "response.incomplete", "response.failed"):
                assert event.response.output_text == text
                assert event.response.usage is not None
                assert event.response.usage.output_tokens > 3
                break
    assert "Paris" in text
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") > 3
    assert cursors == sorted(set(cursors))


async def test_every_surface_gives_the_same_greedy_text(client: AsyncOpenAI) -> None:
    request = {"model": MODEL, "input": CAPITAL, "temperature": 0, "max_output_tokens": 30}
    whole = await client.responses.create(**request)  # type: ignore[call-overload]
    again = await client.responses.create(**request)  # type: ignore[call-overload]
    streamed = ""
    async for event in await client.responses.create(**request, stream=True):  # type: ignore[call-overload]
        if event.type == "response.output_text.delta":
            streamed += event.delta
    messages = [{"role": "user", "content": CAPITAL}]
    chat = await client.chat.completions.create(  # type: ignore[call-overload]
        model=MODEL, messages=messages, temperature=0, max_tokens=30
    )
    chunks = await client.chat.completions.create(  # type: ignore[call-overload]
        model=MODEL,
        messages=messages,
        temperature=0,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunked, usage = "", None
    async for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            chunked += choice.delta.content or ""
    assert "Paris" in whole.output_text
    assert {again.output_text, streamed, chat.choices[0].message.content, chunked} == {whole.output_text}
    assert usage is not None
    assert usage.completion_tokens == chat.usage.completion_tokens == whole.usage.output_tokens


async def test_a_conversation_remembers_a_name(client: AsyncOpenAI) -> None:
    conversation = f"conv_{secrets.token_hex(8)}"
    question = "What is the name of Alice's dog?"
    await ask(client, "Alice has a dog. Its name is Bruno.", conversation=conversation)
    assert "Bruno" in await ask(client, question, conversation=conversation)
    assert "Bruno" not in await ask(client, question, conversation=f"conv_{secrets.token_hex(8)}")


async def test_a_second_turn_extends_the_first_ones_tokens(client: AsyncOpenAI) -> None:
    """previous_response_id continues, and the engine's prefix cache finds the first turn."""
    story = "Tell me about rivers, lakes, canals and the turbines of old water mills. " * 4
    first = await client.responses.create(model=MODEL, input=story, temperature=0, max_output_tokens=60)
    second = await client.responses.create(
        model=MODEL, input="Go on.", previous_response_id=first.id, temperature=0, max_output_tokens=10
    )
    assert first.usage is not None
    assert second.usage is not None
    told = first.usage.input_tokens + first.usage.output_tokens
    assert second.usage.input_tokens > told
    assert second.usage.input_tokens_details.cached_tokens >= told - 64  # whole blocks of 32 tokens


async def test_every_later_turn_hits_the_prefix_cache(client: AsyncOpenAI, real_stack: Stack) -> None:
    """By the engine's own counters: all whole blocks of what was said before are found, turn after turn."""
    conversation = f"conv_{secrets.token_hex(8)}"
    block = 32
    told = 0
    for n in range(6):
        hits = prefix_cache_hits(real_stack)
        response = await client.responses.create(
            model=MODEL,
            input=f"Tell me more about river number {n}, its mills and its canals.",
            conversation=conversation,
            temperature=0,
            max_output_tokens=24,
        )
        assert response.usage is not None
        cached = response.usage.input_tokens_details.cached_tokens
        assert cached >= (told - 1) // block * block  # of the last token nothing is kept
        assert prefix_cache_hits(real_stack) - hits >= cached
        told = response.usage.input_tokens + response.usage.output_tokens
    assert told > 6 * block


class OfVllm:
    """Its own metrics as the worker shows them now. ``names``: of families and of samples."""

    def __init__(self, stack: Stack) -> None:
        self.names: set[str] = set()
        self.samples: list[Sample] = []
        for family in text_string_to_metric_families(stack.metrics("worker")):
            if family.name.startswith("vllm:"):
                self.names |= {family.name, *(sample.name for sample in family.samples)}
                self.samples += family.samples

    def __call__(self, name: str) -> float:
        (found,) = [sample.value for sample in self.samples if sample.name == f"vllm:{name}"]
        return float(found)

    @property
    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {(sample.name, frozenset(sample.labels.items())) for sample in self.samples}


def prefix_cache_hits(stack: Stack) -> float:
    return OfVllm(stack)("prefix_cache_hits_total")


async def test_the_engine_s_own_metrics_move_with_a_request(client: AsyncOpenAI, real_stack: Stack) -> None:
    async def ask_long() -> Response:
        return await client.responses.create(
            model=MODEL,
            input="Tell me of all the lakes, rivers, locks and mills that you know, one after the other.",
            temperature=0,
            max_output_tokens=60,
            extra_body={"ignore_eos": True},
        )

    first = OfVllm(real_stack)
    running = asyncio.create_task(ask_long(), name="ask")
    while True:
        now = await asyncio.to_thread(OfVllm, real_stack)
        if now("num_requests_running") == 1 and now("kv_cache_usage_perc") > 0:
            break
        assert not running.done(), "it was never seen to run"
    usage = (await running).usage
    assert usage is not None
    while OfVllm(real_stack)("num_requests_running"):
        await asyncio.sleep(0.05)
    done = OfVllm(real_stack)
    assert done("prompt_tokens_total") - first("prompt_tokens_total") == usage.input_tokens
    assert done("generation_tokens_total") - first("generation_tokens_total") == usage.output_tokens == 60
    assert done("prefix_cache_queries_total") - first("prefix_cache_queries_total") == usage.input_tokens
    assert done("request_prefill_time_seconds_count") == first("request_prefill_time_seconds_count") + 1
    assert (await ask_long()).usage is not None
    again = OfVllm(real_stack)
    assert again("prefix_cache_hits_total") > done("prefix_cache_hits_total")
    assert again.series == done.series, "labels name no request"
    assert {sample.labels.get("model_name", MODEL) for sample in again.samples} == {MODEL}


def test_pages_and_boards_name_the_engine_s_metrics_as_it_does(real_stack: Stack) -> None:
    shown = OfVllm(real_stack).names
    pages = [*DEPLOY.glob("*.md"), *DEPLOY.glob("observe/rules/*.yml"), *DEPLOY.glob("observe/dashboards/*")]
    named = {name for page in pages for name in re.findall(r"\bvllm:[a-z]\w+", page.read_text())}
    assert len(named) > 10
    assert named - shown == set()


async def test_sixteen_at_once_answer_as_one_alone(client: AsyncOpenAI) -> None:
    questions = [f"Name {count} animals." for count in range(2, 6)]

    async def answer(question: str) -> str:
        response = await client.responses.create(
            model=MODEL, input=question, temperature=0, max_output_tokens=24
        )
        return response.output_text

    alone = [await answer(question) for question in questions]
    together = await asyncio.gather(*(answer(question) for question in questions * 4))
    assert together == alone * 4


async def test_answers_go_on_as_if_their_worker_had_not_been_killed(real_stack: Stack) -> None:
    """kill -9 of the process with the engine; the next one goes on in the middle of each answer."""
    story = {"input": "Tell me a story about a river and a mill.", "max_output_tokens": 48, "min_tokens": 40}
    requests = [
        {**story, "temperature": 0},
        {**story, "temperature": 0.9, "seed": 7},
        {**story, "temperature": 0, "presence_penalty": 1.5},
    ]
    async with Client([real_stack.url], patience_s=300) as client:
        whole = await asyncio.gather(*(client.respond(**request) for request in requests))
        assert len({answer.text for answer in whole}) == len(requests)
        flowing = asyncio.Barrier(len(requests) + 1)

        async def stream(request: dict[str, object]) -> tuple[str, int]:
            text, pieces = "", 0
            async for event in client.stream(**request):
                if event["type"] == "response.output_text.delta":
                    text += event["delta"]
                    pieces += 1
                    if pieces == 6:
                        await flowing.wait()
                elif event["type"] in ("response.completed", "response.incomplete"):
                    return text, event["response"]["usage"]["output_tokens"]
            raise AssertionError("the stream has no end")

        streams = [asyncio.create_task(stream(request)) for request in requests]
        await flowing.wait()
        real_stack.kill_worker_process()
        cut = await asyncio.gather(*streams)
    assert [text for text, _ in cut] == [answer.text for answer in whole]
    assert [n for _, n in cut] == [answer.response["usage"]["output_tokens"] for answer in whole]
    attempts = [line for line in real_stack.output().splitlines() if "attempt 2, continues after" in line]
    assert len(attempts) == len(requests)
