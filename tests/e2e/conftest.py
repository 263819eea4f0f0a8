"""Stacks that the tests share: starting one costs seconds, the real model's half a minute."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.e2e.browser import Watch, chromium, watched_page
from tests.e2e.chat_page import Open, connection
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
    """The real thing: vLLM with SmolLM2, as `make up` starts it; but every answer is generated."""
    running = Stack(
        tmp_path_factory.mktemp("real") / "data",
        engine="vllm",
        env={"HEADRACE_CACHE__ENABLED": "false"},
        ready_timeout_s=400,
    )
    yield running
    assert running.stop() == 0, running.output()


@pytest.fixture
def watches() -> list[Watch]:
    """What each page that the test opened has done, in order."""
    return []


@pytest.fixture
async def open_chat(stack: Stack, browser: Browser, watches: list[Watch]) -> AsyncIterator[Open]:
    """Opens the connected chat page. At the end, no page may have broken its own rules."""
    async with AsyncExitStack() as pages:

        async def open_chat(url: str = stack.url, **context: Any) -> Page:
            page, watch = await pages.enter_async_context(watched_page(browser, url, **context))
            watches.append(watch)
            await expect(connection(page)).to_contain_text("Connected")
            await expect(page.get_by_label("Model")).to_be_enabled()
            return page

        yield open_chat
        for watch in watches:
            watch.assert_clean()


@pytest.fixture
async def page(open_chat: Open) -> Page:
    return await open_chat()
