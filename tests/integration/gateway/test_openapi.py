"""Schemathesis, unmodified, against /openapi.json of a real gateway: what the document allows is answered as
it says, what it forbids is refused, and nothing is a fault of the server. tests/fuzz/schemathesis.toml tells
how to run it for longer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
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


@pytest.mark.timeout(180)
def test_schemathesis(quick: Gateway, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    command = [program, "--config-file", CONFIG, "run", f"{quick.url}/openapi.json"]
    command += ["--seed", "1", "--max-examples", "20", "--no-shrink", "--continue-on-failure", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert campaign.faults(quick.output) == []
