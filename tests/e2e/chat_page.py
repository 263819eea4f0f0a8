"""The chat page as its tests handle it: where things are on it, and how one asks and waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from playwright.async_api import Locator, Page, expect

from tests.e2e.browser import TIMEOUT_MS

Open = Callable[..., Awaitable[Page]]

# Answers of a known length that last some two seconds, one at a time: long enough to be stopped, cut,
# scrolled and queued behind, whatever the simulated engine says.
SLOW_ANSWERS = {
    "HEADRACE_SIM__MEAN_OUTPUT_TOKENS": "0",
    "HEADRACE_SIM__INTER_TOKEN_MS": "20",
    "HEADRACE_SIM__SLOTS": "1",
    "HEADRACE_GATEWAY__DEFAULT_MAX_TOKENS": "120",
    "HEADRACE_GATEWAY__ALLOWED_ORIGINS": "http://app.localhost",
}


def connection(page: Page) -> Locator:
    return page.get_by_role("status")


def prompt(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message")


def answer(page: Page) -> Locator:
    return page.get_by_role("log").get_by_role("article", name="Answer").last


async def ask(page: Page, text: str) -> None:
    await prompt(page).fill(text)
    await expect(page.get_by_role("button", name="Send", exact=True)).to_be_enabled(timeout=30_000)
    await prompt(page).press("Enter")


async def phase(page: Page, wanted: str, *, timeout_ms: float = TIMEOUT_MS) -> None:
    await expect(answer(page)).to_have_attribute("data-phase", wanted, timeout=timeout_ms)


async def text_length(page: Page) -> int:
    return len((await answer(page).locator(".prose").inner_text()).strip())


async def longer_than(page: Page, length: int) -> int:
    """Waits for the answer to have more text than that; returns how much it has."""
    longer = "(length) => [...document.querySelectorAll('.prose')].at(-1)?.innerText.trim().length > length"
    await page.wait_for_function(longer, arg=length)
    return await text_length(page)


async def kept(page: Page) -> list[dict[str, Any]]:
    """The conversations that the browser keeps, the latest first."""
    records: list[dict[str, Any]] = await page.evaluate(
        "Object.entries(localStorage).filter(([key]) => key.startsWith('headrace.chat.'))"
        ".map(([, text]) => JSON.parse(text)).sort((a, b) => b.changedMs - a.changedMs)"
    )
    return records
