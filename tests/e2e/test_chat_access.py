"""The chat page for everyone: keyboard, screen reader, phone, light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.e2e.browser import PHONE
from tests.e2e.chat_page import SLOW_ANSWERS, Open, answer, ask, longer_than, phase, prompt
from tests.e2e.stack import Stack

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("access") / "data", env=SLOW_ANSWERS)
    yield running
    assert running.stop() == 0, running.output()


async def test_keyboard_only(page: Page) -> None:
    await expect(prompt(page)).to_be_focused()
    await page.keyboard.press("Shift+Tab")
    starter = page.get_by_role("list", name="Suggestions").get_by_role("button").last
    await expect(starter).to_be_focused()
    assert await starter.evaluate("(button) => getComputedStyle(button).outlineStyle") == "solid"
    await page.keyboard.press("Enter")
    await longer_than(page, 10)
    await expect(prompt(page)).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Stop", exact=True)).to_be_focused()
    await page.keyboard.press("Space")
    await phase(page, "stopped")
    await expect(prompt(page)).to_be_focused()

    await page.keyboard.type("one line")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("and another")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("article", name="You").last).to_have_text("one line\nand another")
    await longer_than(page, 10)
    await page.keyboard.press("Escape")
    await phase(page, "stopped")

    await page.get_by_role("button", name="New chat").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("article")).to_have_count(0)
    await expect(prompt(page)).to_be_focused()


async def test_shortcuts(page: Page) -> None:
    await ask(page, "A question with a typo")
    await longer_than(page, 10)
    await page.keyboard.press("Escape")
    await phase(page, "stopped")

    await page.keyboard.press("ArrowUp")
    await expect(prompt(page)).to_have_value("A question with a typo")
    await page.keyboard.press("Escape")
    await expect(prompt(page)).to_have_value("")

    await page.keyboard.press("Control+/")
    await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_contain_text("Ctrl")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)

    await page.keyboard.press("Control+Shift+S")
    await expect(page.get_by_role("navigation", name="Conversations")).to_be_hidden()
    await expect(page.get_by_role("button", name="Conversations", exact=True)).to_be_focused()
    await page.reload()
    await expect(page.get_by_role("navigation", name="Conversations")).to_be_hidden()
    await page.keyboard.press("Control+Shift+S")
    await expect(page.get_by_role("navigation", name="Conversations")).to_be_visible()

    await page.keyboard.press("Shift+Escape")
    await expect(prompt(page)).to_be_focused()
    await page.keyboard.press("Control+Shift+O")
    await expect(page.get_by_role("article")).to_have_count(0)


async def test_what_a_screen_reader_is_told(page: Page) -> None:
    """That an answer begins, and all of it when it is there: not each token."""
    await page.evaluate(
        "const announcer = document.getElementById('announcer'); window.told = [];"
        "new MutationObserver(() => window.told.push(announcer.textContent))"
        ".observe(announcer, { childList: true })"
    )
    await expect(page.get_by_role("log", name="Conversation")).to_have_attribute("aria-live", "off")
    await ask(page, "What would I hear?")
    await phase(page, "truncated")
    told: list[str] = await page.evaluate("window.told")
    assert told[0] == "The answer is on its way."
    assert len(told) == 2
    text = await answer(page).locator(".prose").text_content()
    assert told[1] == f"Answer: {text} Ended at the length limit."


async def test_roles_and_names(page: Page) -> None:
    await expect(page.get_by_role("heading", level=1)).to_have_text("Headrace")
    await expect(page.get_by_role("combobox", name="Model")).to_be_visible()
    await expect(page.get_by_role("main")).to_be_visible()
    await expect(page.get_by_role("navigation", name="Conversations")).to_be_visible()
    await ask(page, "Give me buttons.")
    await phase(page, "truncated")
    for control in await page.locator(":is(button, select, textarea, input):visible").all():
        await expect(control).to_have_accessible_name(re.compile(r"\w"))
    ids: list[str] = await page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(open_chat: Open, scheme: str) -> None:
    page = await open_chat(color_scheme=scheme, reduced_motion="reduce")

    async def check() -> None:
        found = await Axe().run(page)
        assert found.violations_count == 0, found.generate_report()

    await check()
    await ask(page, "Is this for everyone?")
    await phase(page, "truncated")
    await answer(page).get_by_text("First token").click()
    await check()
    await page.get_by_role("button", name="Settings").click()
    await check()
    await page.keyboard.press("Escape")
    await page.get_by_role("list", name="Earlier conversations").get_by_role("listitem").hover()
    await page.get_by_role("button", name=re.compile("^Delete")).click()
    await check()


async def test_light_and_dark(open_chat: Open) -> None:
    page = await open_chat(color_scheme="light")

    async def ground() -> str:
        colour: str = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    light = await ground()
    await page.get_by_role("button", name="Light or dark").click()
    dark = await ground()
    assert light != dark
    await page.reload()
    assert await ground() == dark
    await page.emulate_media(color_scheme="dark")
    assert await ground() == dark
    await page.get_by_role("button", name="Light or dark").click()
    assert await ground() == light


NOTHING_SIDEWAYS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone(open_chat: Open, scheme: str, artifacts: Path) -> None:
    page = await open_chat(
        viewport=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True, device_scale_factor=2
    )
    await page.screenshot(path=artifacts / f"chat-phone-{scheme}-empty.png")
    await page.get_by_role("list", name="Suggestions").get_by_role("button").first.click()
    await phase(page, "truncated")
    await answer(page).get_by_text("First token").click()
    await page.screenshot(path=artifacts / f"chat-phone-{scheme}.png")
    assert await page.evaluate(NOTHING_SIDEWAYS)


async def test_the_list_is_a_drawer_on_a_phone(open_chat: Open) -> None:
    page = await open_chat(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    assert await page.evaluate(NOTHING_SIDEWAYS)
    listed = page.get_by_role("navigation", name="Conversations")
    menu = page.get_by_role("button", name="Conversations", exact=True)
    await expect(listed).to_be_hidden()
    await ask(page, "Who is in the drawer?")
    await longer_than(page, 10)
    await page.get_by_role("button", name="Stop", exact=True).click()
    await menu.click()
    await expect(listed).to_be_visible()
    await expect(page.get_by_role("button", name="Hide conversations")).to_be_focused()
    assert await page.evaluate("document.getElementById('stage').inert")
    await page.keyboard.press("Escape")
    await expect(listed).to_be_hidden()
    await expect(menu).to_be_focused()
    await menu.click()
    await page.get_by_role("button", name="New chat").click()
    await expect(listed).to_be_hidden()
    await menu.click()
    await page.get_by_role("list", name="Earlier conversations").get_by_text("Who is in the drawer?").click()
    await expect(listed).to_be_hidden()
    await expect(page.get_by_role("article", name="You")).to_have_text("Who is in the drawer?")
    assert await page.evaluate(NOTHING_SIDEWAYS)
