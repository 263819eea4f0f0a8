"""What the chat page keeps and lets its user change: conversations, questions, models, settings, who asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, Route, WebSocketRoute, expect

from tests.e2e.browser import Watch, watched_page
from tests.e2e.chat_page import (
    SLOW_ANSWERS,
    Open,
    answer,
    ask,
    connection,
    kept,
    longer_than,
    phase,
    prompt,
    text_length,
)
from tests.e2e.stack import Stack

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("conversations") / "data", env=SLOW_ANSWERS)
    yield running
    assert running.stop() == 0, running.output()


def listed(page: Page) -> Locator:
    return page.get_by_role("list", name="Earlier conversations").get_by_role("listitem")


def creates(watch: Watch) -> list[dict[str, Any]]:
    return [event for event in watch.sent if event["type"] == "response.create"]


def created(watch: Watch) -> list[str]:
    return [event["response"]["id"] for event in watch.received if event["type"] == "response.created"]


async def ask_briefly(page: Page, text: str) -> None:
    """Asks, and stops the answer when there is some."""
    await ask(page, text)
    await longer_than(page, 10)
    await page.get_by_role("button", name="Stop", exact=True).click()
    await phase(page, "stopped")


async def test_conversations_survive_a_reload_and_are_gone_on_with(page: Page, watches: list[Watch]) -> None:
    await ask_briefly(page, "First question.")
    shown = await text_length(page)
    await page.get_by_role("button", name="New chat").click()
    await expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
    await ask_briefly(page, "Another matter.")
    await expect(listed(page)).to_have_text(["Another matter.", "First question."])
    await page.reload()
    await expect(page.get_by_role("article", name="You")).to_have_text("Another matter.")
    await listed(page).get_by_text("First question.").click()
    await expect(page.get_by_role("article", name="You")).to_have_text("First question.")
    assert await text_length(page) == shown
    await expect(page).to_have_title("First question. · Headrace")
    await ask_briefly(page, "And then?")
    await expect(listed(page)).to_have_text(["First question.", "Another matter."])

    first, other, then = creates(watches[0])
    assert "previous_response_id" not in first
    assert "previous_response_id" not in other
    assert then["previous_response_id"] == created(watches[0])[0]


async def test_an_answer_goes_on_beside_the_page_and_over_a_reload(page: Page) -> None:
    await ask(page, "A long story, please.")
    await longer_than(page, 10)
    await page.get_by_role("button", name="New chat").click()
    await expect(listed(page)).to_contain_text(["being answered"])
    await page.reload()
    await expect(listed(page)).to_contain_text(["being answered"])
    await listed(page).get_by_text("A long story, please.").click()
    await phase(page, "truncated")
    await expect(listed(page)).to_have_text(["A long story, please."])
    assert (await kept(page))[0]["checkpoint"] is None


async def test_rename_and_delete(page: Page, stack: Stack, watches: list[Watch]) -> None:
    await ask_briefly(page, "A poor title")
    await listed(page).hover()
    await page.get_by_role("button", name="Rename A poor title").click()
    await page.keyboard.type("Rivers")
    await page.keyboard.press("Enter")
    await expect(listed(page)).to_have_text(["Rivers"])
    await listed(page).hover()
    await page.get_by_role("button", name="Rename Rivers").click()
    await page.keyboard.type("No")
    await page.keyboard.press("Escape")
    await expect(listed(page)).to_have_text(["Rivers"])
    await page.reload()
    await expect(listed(page)).to_have_text(["Rivers"])

    delete = page.get_by_role("button", name="Delete Rivers")
    await listed(page).hover()
    await delete.click()
    question = page.get_by_role("dialog", name="Delete this conversation?")
    await expect(question).to_contain_text("Rivers")
    await question.get_by_role("button", name="Keep it").click()
    await expect(listed(page)).to_have_count(1)
    await listed(page).hover()
    await delete.click()
    (response,) = created(watches[0])
    assert (await page.request.get(f"{stack.url}/v1/responses/{response}")).ok
    async with page.expect_response(f"**/v1/responses/{response}") as told:
        await question.get_by_role("button", name="Delete").click()
    assert (await told.value).request.method == "DELETE"
    assert (await told.value).ok
    assert (await page.request.get(f"{stack.url}/v1/responses/{response}")).status == 404
    await expect(listed(page)).to_have_count(0)
    await expect(page.get_by_role("article")).to_have_count(0)
    assert await kept(page) == []


async def test_another_answer_and_another_question(page: Page, watches: list[Watch]) -> None:
    await ask_briefly(page, "First question.")
    await ask_briefly(page, "And then?")
    await answer(page).get_by_role("button", name="Another answer").click()
    await phase(page, "streaming")
    await page.keyboard.press("Escape")
    await phase(page, "stopped")
    await page.get_by_role("article", name="You").last.hover()
    await page.get_by_role("button", name="Edit this question").last.click()
    await expect(prompt(page)).to_have_value("And then?")
    await prompt(page).fill("And now?")
    await page.keyboard.press("Enter")
    await longer_than(page, 10)
    await page.keyboard.press("Escape")
    await phase(page, "stopped")
    await expect(page.get_by_role("article", name="You")).to_have_text(["First question.", "And now?"])
    await expect(page.get_by_role("article", name="Answer")).to_have_count(2)

    first = created(watches[0])[0]
    asked = [(event["input"], event.get("previous_response_id")) for event in creates(watches[0])]
    assert asked == [
        ("First question.", None),
        ("And then?", first),
        ("And then?", first),
        ("And now?", first),
    ]
    keys = {event["idempotency_key"] for event in creates(watches[0])}
    assert len(keys) == 4


async def test_what_the_service_forgot_is_told_it_again(page: Page, watches: list[Watch]) -> None:
    await ask_briefly(page, "My name is Ada.")
    (record,) = await kept(page)
    said = record["turns"][1]["text"]
    record["turns"][1]["responseId"] = "resp_01JDAAAAAAAAAAAAAAAAAAAAAA"
    await page.evaluate(
        "([id, text]) => localStorage.setItem('headrace.chat.3.' + id, text)",
        [record["id"], json.dumps(record)],
    )
    await page.evaluate("window.dispatchEvent(new StorageEvent('storage', { key: null }))")
    await page.get_by_role("button", name="New chat").click()
    await listed(page).get_by_text("My name is Ada.").click()
    await ask_briefly(page, "What is my name?")
    _, refused, told = creates(watches[0])
    assert refused["previous_response_id"] == record["turns"][1]["responseId"]
    assert "previous_response_id" not in told
    assert told["input"] == [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "What is my name?"},
    ]


async def test_two_tabs_show_one_list(page: Page) -> None:
    other = await page.context.new_page()
    await other.goto(page.url)
    await expect(connection(other)).to_contain_text("Connected")
    await ask_briefly(page, "Asked in one tab")
    await expect(listed(other)).to_have_text(["Asked in one tab"])
    await other.close()


async def test_the_chosen_model_and_settings_are_asked_with(open_chat: Open, watches: list[Watch]) -> None:
    page = await open_chat()
    served = await page.get_by_label("Model").input_value()

    async def two_models(route: Route) -> None:
        await route.fulfill(json={"data": [{"id": "auto"}, {"id": served}]})

    await page.route("**/v1/models", two_models)
    await page.reload()
    await page.get_by_label("Model").select_option(served)
    await page.get_by_role("button", name="Settings").click()
    dialog = page.get_by_role("dialog", name="Settings")
    await dialog.get_by_label("Instructions").fill("Answer in verse.")
    await dialog.get_by_label("Temperature").fill("1.5")
    await dialog.get_by_label("Longest answer").fill("7")
    await dialog.get_by_role("button", name="Done").click()
    await page.reload()
    await expect(page.get_by_label("Model")).to_have_value(served)
    await ask(page, "How are you?")
    await phase(page, "truncated")
    (event,) = creates(watches[0])
    assert event["model"] == served
    assert event["instructions"] == "Answer in verse."
    assert event["temperature"] == 1.5
    assert event["max_output_tokens"] == 7
    await answer(page).get_by_text("7 tokens").click()
    await expect(answer(page)).to_contain_text(served)


async def test_the_waterfall_adds_up_to_what_the_browser_measured(page: Page) -> None:
    await ask(page, "Where did the time go?")
    await phase(page, "truncated")
    await answer(page).get_by_text("First token").click()
    await expect(answer(page).locator("dt")).to_contain_text(
        ["Edge", "Queue", "Prefill", "Decode", "Transport", "Network", "In all"]
    )
    (record,) = await kept(page)
    meta = record["turns"][1]["meta"]
    added: dict[str, Any] = await page.evaluate(
        "(meta) => import('/assets/waterfall.js').then((m) => m.waterfall(meta.timings, meta.totalMs))", meta
    )
    assert sum(part["ms"] for part in added["parts"]) == pytest.approx(meta["totalMs"])
    assert 0 < meta["timings"]["total_ms"] <= meta["totalMs"]


async def test_the_place_in_the_line_moves(page: Page) -> None:
    """As a gateway tells it, with the estimates that it may leave out."""

    def gateway(socket: WebSocketRoute) -> None:
        def from_page(message: str | bytes) -> None:
            event = json.loads(message)
            if event["type"] != "response.create":
                return

            def say(kind: str, number: int, **fields: object) -> None:
                lane = event["stream_id"]
                socket.send(
                    json.dumps({"type": kind, "sequence_number": number, "stream_id": lane, **fields})
                )

            say("response.created", 0, response={"id": "resp_1"})
            say("response.queued", 1, position=3, eta_ms=8400)
            say("response.queued", 1, position=2, eta_ms=4200)

        socket.on_message(from_page)

    await page.route_web_socket("**/v1/responses", gateway)
    await page.reload()
    await ask(page, "Whose turn is it?")
    await expect(answer(page)).to_contain_text("In line, at place 2, about 4 s")


async def test_a_gateway_that_asks_who_asks(browser: Browser, stack: Stack) -> None:
    """Its closes are scripted: what it is offered is what this is about."""
    async with watched_page(browser, stack.url) as (page, _):
        await page.add_init_script(
            "const Native = WebSocket; window.offered = [];"
            "window.WebSocket = class extends EventTarget {"
            "  constructor(url, protocols = []) { super(); window.offered.push(protocols);"
            "    if (protocols.includes('headrace.token.hr_good')) return new Native(url);"
            "    setTimeout(() => this.onclose?.({ code: 4401, reason: 'Show a key.' }), 20) }"
            "  send() {} close() {} }"
        )
        await page.reload()
        dialog = page.get_by_role("dialog", name="Sign in")
        await expect(dialog).to_be_visible()
        await expect(connection(page)).to_contain_text("Signed out")
        await dialog.get_by_label("Key or token").fill("has spaces")
        await page.keyboard.press("Enter")
        await expect(dialog.get_by_role("alert")).to_contain_text("no spaces")
        await dialog.get_by_label("Key or token").fill("hr_wrong")
        await page.keyboard.press("Enter")
        await expect(dialog.get_by_role("alert")).to_contain_text("not accepted")
        await dialog.get_by_label("Key or token").fill("hr_good")
        await page.keyboard.press("Enter")
        await expect(dialog).to_be_hidden()
        await expect(connection(page)).to_contain_text("Connected")
        assert await page.evaluate("window.offered") == [
            [],
            ["headrace.v1", "headrace.token.hr_wrong"],
            ["headrace.v1", "headrace.token.hr_good"],
        ]
        async with page.expect_request("**/v1/models") as asked:
            await page.reload()
        assert (await asked.value).headers["authorization"] == "Bearer hr_good"
        await ask_briefly(page, "Am I in?")
        assert await page.evaluate("Object.values(localStorage).join().includes('hr_good')") is False
        await page.get_by_role("button", name="Settings").click()
        await page.get_by_role("button", name="Sign out").click()
        await expect(dialog).to_be_visible()
