"""Forced tool calls on the real vLLM: a model that talks nonsense calls what it must, as the schemas say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.e2e import tiny_model
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

MODEL = "tiny"
CITIES = {"Paris", "Rome"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": sorted(CITIES)}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "name": "get_weather", "parameters": PARAMETERS}
OTHER: Any = {"type": "function", "name": "get_time", "parameters": PARAMETERS}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tiny_model.build(tmp_path_factory.mktemp("models") / MODEL)
    running = Stack(
        tmp_path_factory.mktemp("forced") / "data",
        engine="vllm",
        model=str(folder),
        env={"HEADRACE_VLLM__KV_CACHE_MEMORY_BYTES": str(64 << 20)},
        ready_timeout_s=200,
    )
    yield running
    assert running.stop() == 0, running.output()


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def ask(seed: int, **fields: Any) -> dict[str, Any]:
    return {"temperature": 1, "max_output_tokens": 200, "input": f"{seed}", **fields}


@pytest.mark.parametrize("seed", range(3))
async def test_some_tool_must_be_called(client: AsyncOpenAI, seed: int) -> None:
    response = await client.responses.create(
        **ask(seed, tools=[TOOL, OTHER], tool_choice="required", parallel_tool_calls=False)
    )
    (call,) = response.output
    assert call.type == "function_call"
    assert call.name in ("get_weather", "get_time")
    assert json.loads(call.arguments)["city"] in CITIES


@pytest.mark.parametrize("seed", range(3))
async def test_this_one_must_be_called_and_streams(client: AsyncOpenAI, seed: int) -> None:
    named: Any = {"type": "function", "name": "get_time"}
    stream = await client.responses.create(**ask(seed, tools=[TOOL, OTHER], tool_choice=named, stream=True))
    events: list[Any] = [event async for event in stream]
    (call,) = events[-1].response.output
    assert call.name == "get_time"
    assert json.loads(call.arguments)["city"] in CITIES
    kind = "response.function_call_arguments.delta"
    assert "".join(event.delta for event in events if event.type == kind) == call.arguments


async def test_chat_completions_say_it_in_their_words(client: AsyncOpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
    made = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "?"}],
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
    )
    (call,) = made.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments)["city"] in CITIES
    assert made.choices[0].finish_reason in ("tool_calls", "stop")
