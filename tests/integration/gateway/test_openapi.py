"""Schemathesis, unmodified, against /openapi.json of a real gateway: what the document allows is answered as
it says, what it forbids is refused, and nothing is a fault of the server. tests/fuzz/schemathesis.toml tells
how to run it for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from tests.fuzz import campaign
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, gateway, worker

CONFIG = Path(campaign.__file__).with_name("schemathesis.toml")


@pytest.fixture(scope="module")
def quick(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """However many tokens are asked for, the model's small context ends the answer soon."""
    folder = tmp_path_factory.mktemp("quick")
    servers = (shared_nats_server, shared_redis_server, folder)
    sim = {"max_model_len": 512, "inter_token_ms": 0.1, "prefill_base_ms": 0, "mean_output_tokens": 8}
    with worker(*servers, **sim), gateway(*servers) as running:
        yield running
        assert running.running, running.output


def test_the_served_document_is_valid(quick: Gateway) -> None:
    validate(httpx.get(f"{quick.url}/openapi.json").json())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "streamed", "include": ["message.output_text.logprobs"]}),
        (
            "/v1/responses",
            {"input": "x " * 20, "top_logprobs": 2, "conversation": "c", "metadata": {"a": "b"}},
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "streamed"}]}),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "streamed"}],
                "logprobs": True,
                "stream_options": {"include_usage": True},
            },
        ),
    ],
)
def test_every_event_of_a_stream_is_as_described(quick: Gateway, path: str, body: dict[str, Any]) -> None:
    """Which schemathesis does not look into."""
    document = httpx.get(f"{quick.url}/openapi.json").json()
    streams = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    of_data = streams["itemSchema"]["properties"]["data"]
    inside = of_data if "contentSchema" in of_data else of_data["anyOf"][1]
    described = Draft202012Validator({**inside["contentSchema"], "components": document["components"]})
    events = httpx.post(f"{quick.url}{path}", json={**body, "stream": True}).text.split("\n\n")[:-1]
    if of_data is not inside:
        assert events.pop() == f"data: {of_data['anyOf'][0]['const']}"
    assert len(events) > 4
    for event in events:
        *named, data = event.split("\n")
        told = json.loads(data.removeprefix("data: "))
        described.validate(told)
        assert named == ([f"event: {told['type']}"] if "event" in streams["itemSchema"]["required"] else [])


@pytest.mark.timeout(180)
def test_schemathesis(quick: Gateway, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    command = [program, "--config-file", CONFIG, "run", f"{quick.url}/openapi.json"]
    command += ["--seed", "1", "--max-examples", "20", "--no-shrink", "--continue-on-failure", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert campaign.faults(quick.output) == []
