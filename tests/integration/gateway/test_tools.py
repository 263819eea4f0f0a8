"""Tool calls and reasoning with the official SDK; the simulated engine says what it is told to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.integration.gateway.processes import Gateway

LIMIT_S = 30
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SAY = f"<|say|>Let me look.\n{CALL}\n{CALL.replace('Paris', 'Rome')}"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "name": "get_weather", "parameters": PARAMETERS}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}


@pytest.fixture
async def client(served: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S
    ) as made:
        yield made


@pytest.fixture
async def model(client: AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


def check_items(events: list[Any]) -> None:
    """Each event is of the item that is open, and numbers go up."""
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    texts: dict[int, str] = {}
    for event in events:
        if event.type.endswith(".delta"):
            texts[event.output_index] = texts.get(event.output_index, "") + event.delta
    output = events[-1].response.output
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert added == [item.id for item in done] == [item.id for item in output]
    assert done == output
    for index, item in enumerate(output):
        told = item.arguments if item.type == "function_call" else item.content[0].text
        assert texts.get(index, "") == told


async def test_calls_stream_as_items_and_any_break_can_be_resumed(client: AsyncOpenAI, model: str) -> None:
    stream = await client.responses.create(model=model, input=SAY, tools=[TOOL], stream=True)
    events: list[Any] = [event async for event in stream]
    check_items(events)
    response = events[-1].response
    assert events[-1].type == "response.completed"
    message, first, second = response.output
    assert message.content[0].text == "Let me look.\n"
    assert (first.name, json.loads(first.arguments)) == ("get_weather", {"city": "Paris"})
    assert json.loads(second.arguments) == {"city": "Rome"}
    assert first.call_id != second.call_id
    assert response.tools[0].name == "get_weather"
    whole = {e.sequence_number: e for e in events if not e.type.endswith(".delta")}
    for after in (2, 1000, events[len(events) // 2].sequence_number, numbers(events)[-3]):
        again: Any = await client.responses.retrieve(response.id, stream=True, starting_after=after)
        rest: list[Any] = [event async for event in again]
        assert all(event.sequence_number > after for event in rest)
        structure = {e.sequence_number: e for e in rest if not e.type.endswith(".delta")}
        assert structure == {number: e for number, e in whole.items() if number > after}
        for kind in ("response.output_text.delta", "response.function_call_arguments.delta"):
            seen = joined([e for e in events if e.sequence_number <= after], kind)
            assert seen + joined(rest, kind) == joined(events, kind)
    assert (await client.responses.retrieve(response.id)).output == response.output


async def test_calls_over_a_socket_beside_another_answer(client: AsyncOpenAI, model: str) -> None:
    asked: dict[str, Any] = {"calls": {"input": SAY, "tools": [TOOL]}, "words": {"input": "<|say|>Hello!"}}
    seen: dict[str, list[Any]] = {lane: [] for lane in asked}
    async with client.responses.connect() as connection:
        for lane, fields in asked.items():
            sent: Any = {"type": "response.create", "model": model, "stream_id": lane, **fields}
            await connection.send(sent)
        while any(not events or events[-1].type != "response.completed" for events in seen.values()):
            event: Any = await connection.recv()
            if event.type != "response.queued":
                seen[event.stream_id].append(event)
    for events in seen.values():
        check_items(events)
    message, first, second = seen["calls"][-1].response.output
    assert message.content[0].text == "Let me look.\n"
    assert [json.loads(call.arguments)["city"] for call in (first, second)] == ["Paris", "Rome"]
    assert seen["words"][-1].response.output_text == "Hello!"


def numbers(events: list[Any]) -> list[int]:
    return [event.sequence_number for event in events]


def joined(events: list[Any], kind: str) -> str:
    return "".join(event.delta for event in events if event.type == kind)


async def test_the_agent_loop(client: AsyncOpenAI, model: str) -> None:
    """Calls, their outputs under previous_response_id, and an answer whose prompt extends the first one."""
    first = await client.responses.create(model=model, input=SAY, tools=[TOOL])
    calls = [item for item in first.output if item.type == "function_call"]
    outputs: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls[:1]
    ]
    outputs.append({"type": "function_call_output", "call_id": calls[1].call_id, "output": "<|say|>Sunny!"})
    second = await client.responses.create(
        model=model, input=outputs, previous_response_id=first.id, tools=[TOOL]
    )
    assert second.output_text == "Sunny!"
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    sent_back: Any = [
        {"role": "user", "content": SAY},
        *[item.model_dump() for item in first.output],
        *outputs,
    ]
    whole = await client.responses.create(model=model, input=sent_back, tools=[TOOL])
    assert whole.output_text == "Sunny!"


async def test_reasoning_is_an_item_of_its_own(client: AsyncOpenAI, model: str) -> None:
    messages: Any = [{"role": "user", "content": "<|say|>I think.\n</think>\n\nHello!"}]
    asked: Any = {"model": model, "messages": messages}
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
    whole = await client.chat.completions.create(**asked, extra_body=kwargs)
    assert whole.choices[0].message.content == "Hello!"
    assert whole.choices[0].message.model_extra == {"reasoning_content": "I think.\n"}
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens
    stream = await client.chat.completions.create(**asked, extra_body=kwargs, stream=True)
    deltas = [chunk.choices[0].delta async for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == "Hello!"
    thoughts = [(delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas]
    assert "".join(thoughts) == "I think.\n"
    plain = await client.chat.completions.create(**asked)
    assert plain.choices[0].message.content == "I think.\n</think>\n\nHello!"


async def test_chat_calls_stream_and_are_sent_back(client: AsyncOpenAI, model: str) -> None:
    messages: Any = [{"role": "user", "content": SAY}]
    async with client.chat.completions.stream(model=model, messages=messages, tools=[CHAT_TOOL]) as stream:
        async for _ in stream:
            pass
        streamed = (await stream.get_final_completion()).choices[0]
    whole = (await client.chat.completions.create(model=model, messages=messages, tools=[CHAT_TOOL])).choices[
        0
    ]
    for choice in (streamed, whole):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me look.\n"
        calls: Any = choice.message.tool_calls
        assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]
    messages += [whole.message.model_dump(exclude_none=True)]
    messages += [{"role": "tool", "tool_call_id": calls[0].id, "content": "<|say|>Sunny!"}]
    last = await client.chat.completions.create(model=model, messages=messages, tools=[CHAT_TOOL])
    assert last.choices[0].message.content == "Sunny!"
    assert last.choices[0].finish_reason == "stop"


async def test_one_call_and_none(client: AsyncOpenAI, model: str) -> None:
    one = await client.responses.create(model=model, input=SAY, tools=[TOOL], parallel_tool_calls=False)
    assert [item.type for item in one.output] == ["message", "function_call"]
    none = await client.responses.create(model=model, input=SAY, tools=[TOOL], tool_choice="none")
    assert none.output_text == SAY.removeprefix("<|say|>")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),  # this engine follows no schema
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
    ],
)
async def test_refused_by_name(client: AsyncOpenAI, model: str, fields: dict[str, Any], param: str) -> None:
    asked: Any = {"model": model, "input": "x", "tools": [TOOL], **fields}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(**asked)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
