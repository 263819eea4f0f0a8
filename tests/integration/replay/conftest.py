"""Commands for a broker of the test's own, and a folder for the tokenizers that they fetch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.connection import Broker
from schemas.config import Config
from tests.integration.conftest import NatsServer
from tests.integration.replay.commands import Commands
from tests.integration.workers.farm import Client, client, in_process, make_config


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def config(nats_server: NatsServer) -> Config:
    return make_config(nats_server.config, mean_output_tokens=0, slots=16)


@pytest.fixture
async def tester(broker: Broker, config: Config, tmp_path: Path) -> AsyncIterator[Client]:
    """With a worker, whose answers run to their limit of tokens."""
    async with client(broker, config, tmp_path) as tester, in_process(config):
        yield tester


@pytest.fixture
def commands(
    broker: Broker, config: Config, own_cache_folder: None, capsys: pytest.CaptureFixture[str]
) -> Commands:
    return Commands(broker, config, capsys)
