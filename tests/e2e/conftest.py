"""Stacks that the tests share: starting one costs seconds, the real model's half a minute."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.e2e.browser import chromium
from tests.e2e.stack import Stack

ARTIFACTS = Path(__file__).parents[1] / ".artifacts"


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Where screenshots and other things to look at are kept."""
    ARTIFACTS.mkdir(exist_ok=True)
    return ARTIFACTS


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One gateway and one worker with the simulated engine."""
    running = Stack(tmp_path_factory.mktemp("stack") / "data")
    yield running
    assert running.stop() == 0, running.output()


@pytest.fixture(scope="session")
def real_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real thing: vLLM with SmolLM2, as `make up` starts it."""
    running = Stack(tmp_path_factory.mktemp("real") / "data", engine="vllm", ready_timeout_s=400)
    yield running
    assert running.stop() == 0, running.output()
