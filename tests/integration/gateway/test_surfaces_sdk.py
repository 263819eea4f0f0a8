"""The official SDK, async and sync, over every transport, against the real thing with a simulated engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.integration.gateway.processes import Gateway

LIMIT_S = 30
TOKENS = 12


@pytest.fixture
async def client(served: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S
    ) as made:
        yield made


@pytest.fixture
def sync_client(served: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S) as made:
        yield made


@pytest.fixture
async def model(client: AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


def check(events: list[Any]) -> str:
    """One whole, well-formed stream of events; returns its text."""
    kinds = [event.type for event in events]
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    assert kinds[:5] == [
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    response = events[-1].response
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert response.output_text == text
    assert response.output[0].id == "msg_" + response.id.removeprefix("resp_")
    assert numbers[-1] // 1000 == response.usage.output_tokens + 1
    return text


async def test_one_answer(client: AsyncOpenAI, model: str) -> None:
    response = await client.responses.create(model=model, input="hello", max_output_tokens=TOKENS)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == TOKENS
    assert response.output_text
    assert response.model_extra is not None
    assert 0 < response.model_extra["timings"]["ttft_ms"] < response.model_extra["timings"]["total_ms"]


# the SDK's synchronous connection uses a form that websockets 17.1 deprecates
@pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
async def test_the_same_text_by_every_way(client: AsyncOpenAI, sync_client: OpenAI, model: str) -> None:
    ask: dict[str, Any] = {"model": model, "input": "the same", "max_output_tokens": TOKENS, "temperature": 0}
    texts = [(await client.responses.create(**ask)).output_text]
    async with await client.responses.create(**ask, stream=True) as stream:
        texts.append(check([event async for event in stream]))
    async with client.responses.connect() as connection:
        await connection.response.create(**ask)
        texts.append(check(await until_end(connection)))
    messages: list[Any] = [{"role": "user", "content": "the same"}]
    said: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_completion_tokens": TOKENS,
        "temperature": 0,
    }
    texts.append((await client.chat.completions.create(**said)).choices[0].message.content or "")
    chunks = [c async for c in await client.chat.completions.create(**said, stream=True)]
    texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    texts += await asyncio.to_thread(by_sync_client, sync_client, ask, said)
    assert len(set(texts)) == 1
    assert texts[0]


def by_sync_client(client: OpenAI, ask: dict[str, Any], said: dict[str, Any]) -> list[str]:
    texts = [client.responses.create(**ask).output_text]
    with client.responses.create(**ask, stream=True) as stream:
        texts.append(check(list(stream)))
    with client.responses.connect() as connection:
        connection.response.create(**ask)
        events = []
        for event in connection:
            events.append(event)
            if event.type in ("response.completed", "response.incomplete"):
                break
        texts.append(check(events))
    texts.append(client.chat.completions.create(**said).choices[0].message.content or "")
    return texts


async def until_end(connection: Any, stream_id: str | None = None) -> list[Any]:
    events = []
    async with asyncio.timeout(LIMIT_S):
        async for event in connection:
            if event.stream_id == stream_id:
                events.append(event)
            if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
                return events
    raise AssertionError("the connection ended first")


async def test_many_at_once_on_one_socket(client: AsyncOpenAI, model: str) -> None:
    lanes: dict[str, list[Any]] = {f"lane-{n}": [] for n in range(6)}
    async with client.responses.connect() as connection, asyncio.timeout(LIMIT_S):
        for lane in lanes:
            await connection.response.create(
                model=model, input=lane, max_output_tokens=TOKENS, stream_id=lane
            )
        ended: list[str] = []
        order: list[str] = []
        while len(ended) < len(lanes):
            event: Any = await connection.recv()
            lanes[event.stream_id].append(event)
            order.append(event.stream_id)
            if event.type == "response.incomplete":
                ended.append(event.stream_id)
    assert len({check(events) for events in lanes.values()}) == len(lanes)
    assert order != sorted(order), "they ran one after the other"


async def test_a_lane_runs_in_its_order(client: AsyncOpenAI, model: str) -> None:
    async with client.responses.connect() as connection:
        for text in ("first", "second"):
            await connection.response.create(
                model=model, input=text, max_output_tokens=TOKENS, stream_id="lane"
            )
        check(await until_end(connection, "lane"))
        check(await until_end(connection, "lane"))


async def test_a_conversation_is_remembered(client: AsyncOpenAI, model: str) -> None:
    ask: dict[str, Any] = {"model": model, "max_output_tokens": TOKENS}
    first = await client.responses.create(**ask, input="my name is Ada", conversation="about names")
    second = await client.responses.create(**ask, input="who am I?", conversation="about names")
    alone = await client.responses.create(**ask, input="who am I?")
    assert first.usage
    assert second.usage
    assert alone.usage
    assert second.usage.input_tokens >= first.usage.input_tokens + TOKENS
    assert second.usage.input_tokens > alone.usage.input_tokens
    after = await client.responses.create(**ask, input="who am I?", previous_response_id=first.id)
    assert after.usage
    assert after.usage.input_tokens == second.usage.input_tokens
    assert after.previous_response_id == first.id


async def test_chat_completions_stop_usage_and_logprobs(client: AsyncOpenAI, model: str) -> None:
    said: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "stop me"}],
        "max_tokens": 40,
        "temperature": 0,
    }
    whole = await client.chat.completions.create(**said)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 40
    text = whole.choices[0].message.content or ""
    stop = text[len(text) // 2 :][:3]
    stopped = await client.chat.completions.create(**said, stop=[stop])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.usage is not None
    assert stopped.usage.completion_tokens < 40
    stream = await client.chat.completions.create(**said, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 40
    assert chunks[-2].choices[0].finish_reason == "length"


async def test_cancel_by_socket_and_by_request(client: AsyncOpenAI, model: str) -> None:
    async with client.responses.connect() as connection:
        await connection.response.create(model=model, input="long", max_output_tokens=5000)
        created: Any = await connection.recv()
        while (await connection.recv()).type != "response.output_text.delta":
            pass
        cancel: Any = {"type": "response.cancel", "response_id": created.response.id}
        await connection.send(cancel)
        last = (await until_end(connection))[-1]
        assert last.type == "response.incomplete"
        assert last.response.status == "cancelled"
        assert last.response.incomplete_details.reason == "cancelled"
        assert 0 < last.response.usage.output_tokens < 5000
    stream = await client.responses.create(model=model, input="long", max_output_tokens=5000, stream=True)
    async for event in stream:
        if event.type == "response.created":
            cancelled = await client.responses.cancel(event.response.id)
            assert cancelled.status == "cancelled"
    assert event.type == "response.incomplete"


async def test_resume_behind_any_event(client: AsyncOpenAI, served: Gateway, model: str) -> None:
    """Broken off after event n, resumed over either transport: nothing is lost, nothing comes twice."""
    for n in (1, 3, 4, 5, 6, 9):
        seen = []
        ask: dict[str, Any] = {"model": model, "input": f"broken after {n}", "max_output_tokens": 60}
        async with await client.responses.create(**ask, stream=True) as stream:
            async for event in stream:
                seen.append(event)
                if len(seen) == n:
                    break
        response, after = seen[0].response.id, seen[-1].sequence_number
        if n % 2:
            async with await client.responses.retrieve(response, stream=True, starting_after=after) as stream:
                seen += [event async for event in stream]
        else:
            async with client.responses.connect() as connection:
                resume: Any = {"type": "response.resume", "response_id": response, "starting_after": after}
                await connection.send(resume)
                seen += await until_end(connection)
        text = check(seen)
        held = await client.responses.retrieve(response)
        assert held.output_text == text


async def test_what_is_kept_is_shown_and_deleted(client: AsyncOpenAI, model: str) -> None:
    name = "to/be deleted"
    first, second = [
        await client.responses.create(
            model=model, input=text, instructions="Be kind.", conversation=name, max_output_tokens=TOKENS
        )
        for text in ("one", "two")
    ]
    asked = await client.responses.input_items.list(second.id)
    assert [item.content[0].text for item in asked.data] == ["two"]  # type: ignore[union-attr]
    conversation = await client.conversations.retrieve(name)
    assert conversation.created_at == first.created_at
    items = [item async for item in client.conversations.items.list(name, limit=3, order="asc")]
    shown = [(item.role, item.content[0].text) for item in items]  # type: ignore[union-attr]
    assert shown == [
        ("user", "one"), ("assistant", first.output_text), ("user", "two"), ("assistant", second.output_text)
    ]  # fmt: skip
    assert items[1].id == first.output[0].id
    assert (await client.conversations.delete(name)).deleted
    with pytest.raises(openai.NotFoundError, match="no conversation"):
        await client.conversations.retrieve(name)
    await client.responses.delete(first.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="no response"):
            await gone(first.id)  # type: ignore[operator]
    assert (await client.responses.retrieve(second.id)).output_text == second.output_text
    for query in ({"limit": 0}, {"order": "up"}, {"after": "msg_none"}, {"include": ["x"]}):
        with pytest.raises(openai.BadRequestError):
            await client.responses.input_items.list(second.id, extra_query=query)


async def test_refusals_are_the_sdks_exceptions(client: AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        await client.responses.create(model="no-such-model", input="x")
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        await client.responses.create(model=model, input="x" * 300_000)
    assert bad.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unsupported:
        await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "x"}], store=True
        )
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "store")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_01JD0000000000000000000000")
    assert (await client.models.retrieve(model)).id == model
