"""Other people's clients, unmodified, against a gateway with a simulated engine. The official Python SDK
has a file of its own, test_surfaces_sdk.py; `vllm bench serve` is in tests/e2e."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI

from tests.integration.gateway.processes import Gateway

LIMIT_S = 60
TOKENS = 12
JAVASCRIPT = Path(__file__).parent / "js"


# -- the official SDK for JavaScript ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def packages() -> Path:
    """``node_modules``, as the lock file has them, from the registry that npm is told of."""
    npm = shutil.which("npm")
    assert npm is not None, "the JavaScript clients need node and npm"
    installed, lock = JAVASCRIPT / "node_modules" / ".package-lock.json", JAVASCRIPT / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        os.utime(installed)
    return JAVASCRIPT / "node_modules"


@pytest.mark.parametrize("tests", sorted(JAVASCRIPT.glob("*.test.mjs")), ids=lambda path: path.name)
def test_the_official_client_for_javascript(served: Gateway, packages: Path, tests: Path) -> None:
    node = shutil.which("node")
    assert node is not None
    environ = {**os.environ, "HEADRACE_URL": served.url}
    done = subprocess.run([node, "--test", tests], capture_output=True, text=True, timeout=100, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in served.output


# -- LangChain --------------------------------------------------------------------------------------------


@pytest.fixture
def model_name(served: Gateway) -> Iterator[str]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        yield client.models.list().data[0].id


@pytest.fixture
async def connections() -> AsyncIterator[dict[str, Any]]:
    """LangChain's own are kept for the life of the process."""
    with httpx.Client() as sync:
        async with httpx.AsyncClient() as made:
            yield {"http_client": sync, "http_async_client": made}


def langchain(served: Gateway, model: str, **more: Any) -> ChatOpenAI:
    made: ChatOpenAI = ChatOpenAI(
        base_url=f"{served.url}/v1",
        api_key="none",
        model=model,
        max_tokens=TOKENS,
        temperature=0,
        max_retries=0,
        timeout=LIMIT_S,
        **more,
    )
    return made


MESSAGES = [SystemMessage("s"), HumanMessage("the same")]


@pytest.mark.parametrize("responses_api", [False, True], ids=["chat completions", "responses"])
async def test_langchain_invokes_streams_and_batches(
    served: Gateway, model_name: str, connections: dict[str, Any], responses_api: bool
) -> None:
    chat = langchain(served, model_name, use_responses_api=responses_api, stream_usage=True, **connections)
    whole = await asyncio.to_thread(chat.invoke, MESSAGES)
    assert whole.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == TOKENS
    assert (await chat.ainvoke(MESSAGES)).text == whole.text
    streamed = [chunk async for chunk in chat.astream(MESSAGES)]
    assert len(streamed) > 3
    together = sum(streamed[1:], start=streamed[0])
    assert isinstance(together, AIMessageChunk)
    assert together.text == whole.text
    assert together.usage_metadata is not None
    assert together.usage_metadata["output_tokens"] == TOKENS
    batched = await chat.abatch([[HumanMessage(f"question {n}")] for n in range(6)])
    assert len({answer.text for answer in batched}) == 6


async def test_langchain_keeps_a_conversation_of_the_responses_api(
    served: Gateway, model_name: str, connections: dict[str, Any]
) -> None:
    chat = langchain(served, model_name, use_responses_api=True, use_previous_response_id=True, **connections)
    first = await chat.ainvoke([HumanMessage("my name is Ada")])
    second = await chat.ainvoke([HumanMessage("my name is Ada"), first, HumanMessage("who am I?")])
    assert first.usage_metadata is not None
    assert second.usage_metadata is not None
    assert second.usage_metadata["input_tokens"] >= first.usage_metadata["input_tokens"] + TOKENS


async def test_langchain_is_told_what_is_refused(
    served: Gateway, model_name: str, connections: dict[str, Any]
) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await langchain(served, "no-such-model", **connections).ainvoke(MESSAGES)
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unknown:
        await langchain(served, model_name, extra_body={"temprature": 1}, **connections).ainvoke(MESSAGES)
    assert unknown.value.param == "temprature"


# -- the official SDK for Python: its helpers above the plain calls ----------------------------------------


async def test_the_stream_helpers_of_the_python_sdk(served: Gateway, model_name: str) -> None:
    """They know no final response but a completed one: a stop string ends this one."""
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {"model": model_name, "input": "helped", "temperature": 0}
        text = (await client.responses.create(**ask, max_output_tokens=TOKENS)).output_text
        stop = {"extra_body": {"stop": text[-4:]}}
        async with client.responses.stream(**ask, **stop) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert final.output_text == text[: text.index(text[-4:])]
        async with client.responses.stream(response_id=final.id, starting_after=1002) as resumed:
            behind = [event async for event in resumed]
        assert behind[-1].type == "response.completed"
        assert min(event.sequence_number for event in behind) > 1002
        said: dict[str, Any] = {"model": model_name, "messages": [{"role": "user", "content": "helped"}]}
        async with client.chat.completions.stream(**said, temperature=0, stop=text[-4:]) as chunks:
            completion = await chunks.get_final_completion()
        assert completion.choices[0].message.content == final.output_text


async def test_items_and_log_probabilities_with_the_python_sdk(served: Gateway, model_name: str) -> None:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {"model": model_name, "max_output_tokens": TOKENS, "temperature": 0}
        items: list[Any] = [{"role": "user", "content": "one"}]
        first = await client.responses.create(
            **ask, input=items, include=["message.output_text.logprobs"], top_logprobs=2
        )
        (message,) = first.output
        assert message.type == "message"
        (part,) = message.content
        assert part.type == "output_text"
        assert part.logprobs is not None
        assert [len(at.top_logprobs) for at in part.logprobs] == [2] * TOKENS
        again = [*items, *first.output, {"role": "user", "content": "two"}]
        second = await client.responses.create(**ask, input=again)
        assert first.usage is not None
        assert second.usage is not None
        assert second.usage.input_tokens >= first.usage.input_tokens + TOKENS
        said: dict[str, Any] = {"model": model_name, "messages": items, "max_tokens": TOKENS, "seed": 7}
        answers = [
            (await client.chat.completions.create(**said, logprobs=True, top_logprobs=3)).choices[0]
            for _ in range(2)
        ]
        assert answers[0].message.content == answers[1].message.content
        shown = answers[0].logprobs
        assert shown is not None
        assert [len(at.top_logprobs) for at in shown.content or ()] == [3] * TOKENS


async def test_raw_answers_of_the_python_sdk_name_the_response(served: Gateway, model_name: str) -> None:
    """``x-request-id`` is a response's id, so ``_request_id`` of any object finds and cancels it."""
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        completion = await client.chat.completions.create(
            model=model_name, messages=[{"role": "user", "content": "named"}], max_tokens=4
        )
        assert completion._request_id is not None
        held = await client.responses.retrieve(completion._request_id)
        assert held.output_text == completion.choices[0].message.content
        raw = await client.responses.with_raw_response.create(
            model=model_name, input="x", max_output_tokens=4
        )
        assert raw.headers["x-request-id"] == raw.parse().id
