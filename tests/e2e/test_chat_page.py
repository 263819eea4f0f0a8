"""The chat page in a real browser, against the running product with the simulated engine."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Page, WebSocketRoute, expect

from tests.e2e.browser import Watch, watched_page
from tests.e2e.cable import cable
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

RESTARTED_MS = 60_000  # a new gateway is there, and the page has found it


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("page") / "data", env=SLOW_ANSWERS)
    yield running
    assert running.stop() == 0, running.output()


async def test_an_answer_streams_to_its_end(page: Page, watches: list[Watch], artifacts: Path) -> None:
    await page.screenshot(path=artifacts / "chat-empty.png")
    await ask(page, "What is a headrace?")

    lengths = [0]
    for _ in range(4):
        lengths.append(await longer_than(page, lengths[-1]))
    await phase(page, "streaming")
    await expect(answer(page)).to_have_attribute("aria-busy", "true")
    await page.screenshot(path=artifacts / "chat-streaming.png")

    await phase(page, "truncated")
    assert await text_length(page) > lengths[-1] > lengths[-2] > lengths[-3]
    await expect(answer(page)).to_have_attribute("aria-busy", "false")
    await expect(answer(page)).to_contain_text("Ended at the length limit.")
    figures = answer(page).get_by_text(re.compile(r"First token [\d.]+ m?s · 120 tokens · [\d.]+ tokens/s"))
    await figures.click()
    await expect(answer(page).locator("dl")).to_contain_text("Decode")
    await expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    await page.screenshot(path=artifacts / "chat-finished.png")
    assert any(url.startswith("ws://") for url in watches[0].loaded)


async def test_stop_keeps_what_came_and_the_chat_goes_on(page: Page) -> None:
    await ask(page, "Tell me a long story.")
    await longer_than(page, 20)
    await page.get_by_role("button", name="Stop", exact=True).click()
    await phase(page, "stopped")
    stopped_at = await text_length(page)
    assert stopped_at > 20
    await expect(answer(page)).to_contain_text("Stopped.")
    await expect(prompt(page)).to_be_focused()

    await ask(page, "And now a second one.")
    await phase(page, "truncated")
    assert await text_length(page) > stopped_at
    await expect(page.get_by_role("article", name="You")).to_have_text(
        ["Tell me a long story.", "And now a second one."]
    )
    await expect(page.get_by_role("article", name="Answer")).to_have_count(2)


# Looks at each change of the page, before anyone could see it.
WATCH_SEAM = """() => {
  const seen = (window.seam = [])
  const look = () => {
    const answer = [...document.querySelectorAll(".answer")].at(-1)
    if (answer === undefined) return
    seen.push({
      text: answer.querySelector(".prose").innerText.replace(/\\P{Letter}/gu, ""), // no Markdown signs
      phase: answer.dataset.phase,
      trouble: document.querySelector(".turn .error, .actions .quiet, #notice:not([hidden])") !== null,
      scrollTop: document.querySelector("main").scrollTop,
    })
  }
  const all = { subtree: true, childList: true, characterData: true, attributes: true }
  new MutationObserver(look).observe(document.body, all)
}"""


async def assert_no_seam(page: Page) -> None:
    """Nothing that stood there went away or moved up, and nobody was told of any trouble."""
    seen: list[dict[str, Any]] = await page.evaluate("window.seam")
    assert len(seen) > 5  # a busy machine draws fewer frames
    for before, after in pairwise(seen):
        assert after["text"].startswith(before["text"])
        assert after["scrollTop"] >= before["scrollTop"]
    assert [look for look in seen if look["trouble"]] == []
    phases = [phase for phase, _ in groupby(look["phase"] for look in seen)]
    assert phases == sorted(phases, key=["sent", "queued", "working", "streaming", "truncated"].index)


async def assert_whole(page: Page, stack: Stack, watch: Watch) -> None:
    """The last answer is what any client gets of that response, and there was one response only."""
    ids = {event["response"]["id"] for event in watch.received if event["type"] == "response.created"}
    async with httpx.AsyncClient(base_url=stack.url) as client:
        served = (await client.get(f"/v1/responses/{ids.pop()}")).json()
    assert ids == set()
    assert served["status"] == "incomplete"
    assert served["usage"]["output_tokens"] == 120
    (conversation,) = await kept(page)
    shown = conversation["turns"][-1]["text"]
    assert shown == "".join(part["text"] for item in served["output"] for part in item["content"])


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
async def test_a_gateway_restarts_without_a_seam(
    open_chat: Open, stack: Stack, watches: list[Watch], sig: signal.Signals
) -> None:
    page = await open_chat(viewport={"width": 390, "height": 420})
    await page.evaluate(WATCH_SEAM)
    await ask(page, "Will you survive this?")
    await longer_than(page, 20)
    dead = stack.kill("gateway", sig)
    await phase(page, "truncated", timeout_ms=RESTARTED_MS)
    await assert_no_seam(page)
    stack.wait_replaced("gateway", dead)
    await assert_whole(page, stack, watches[0])
    await expect(connection(page)).to_contain_text("Connected")
    watches[0].forgive_lost_connections()


async def test_stop_works_while_the_gateway_is_dead(page: Page, watches: list[Watch], stack: Stack) -> None:
    await ask(page, "Will you stop?")
    await longer_than(page, 20)
    dead = stack.kill_gateway()
    await page.get_by_role("button", name="Stop", exact=True).click()
    await expect(page.get_by_role("button", name="Stop", exact=True)).to_be_disabled()
    await phase(page, "stopped", timeout_ms=RESTARTED_MS)
    assert [event["type"] for event in watches[0].sent if event["type"] != "ping"] == [
        "response.create",
        "response.resume",
        "response.cancel",
    ]
    stack.wait_replaced("gateway", dead)
    await ask(page, "And now a second one.")
    await phase(page, "truncated")
    watches[0].forgive_lost_connections()


async def test_what_is_sent_while_the_gateway_is_dead_is_answered(
    page: Page, watches: list[Watch], stack: Stack
) -> None:
    dead = stack.kill_gateway()
    await ask(page, "Is anybody there?")
    await phase(page, "truncated", timeout_ms=RESTARTED_MS)
    await expect(page.get_by_role("article", name="Answer")).to_have_count(1)
    stack.wait_replaced("gateway", dead)
    await assert_whole(page, stack, watches[0])
    watches[0].forgive_lost_connections()


async def test_a_reload_goes_on_with_the_answer(page: Page, watches: list[Watch], stack: Stack) -> None:
    await ask(page, "Will you go on?")
    await longer_than(page, 20)
    before_reload = await text_length(page)
    await page.reload()
    await page.evaluate(WATCH_SEAM)
    await phase(page, "streaming")
    assert await text_length(page) >= before_reload
    await phase(page, "truncated")
    await assert_no_seam(page)
    await assert_whole(page, stack, watches[0])
    await expect(answer(page)).to_contain_text("120 tokens")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_long_gap_is_told_calmly(
    open_chat: Open, stack: Stack, watches: list[Watch], scheme: str, artifacts: Path
) -> None:
    async with cable(stack.part("gateway").port) as line:
        page = await open_chat(line.url, color_scheme=scheme)
        await page.evaluate(WATCH_SEAM)
        await ask(page, "Are you still there?")
        await longer_than(page, 20)
        line.cut()
        await expect(connection(page)).to_have_text("Reconnecting")
        await page.screenshot(path=artifacts / f"chat-reconnecting-{scheme}.png")
        await expect(connection(page)).to_contain_text(re.compile(r"Offline, retrying in \d+ s"))
        await phase(page, "streaming")
        await page.screenshot(path=artifacts / f"chat-offline-{scheme}.png")
        await line.mend()
        await page.get_by_role("button", name="Retry now").click()
        await phase(page, "truncated")
        await expect(connection(page)).to_have_text("Connected")
        await assert_no_seam(page)
        await assert_whole(page, stack, watches[0])
        watches[0].forgive_lost_connections()
        await page.close()


async def test_a_service_that_is_away_is_waited_for(
    page: Page, watches: list[Watch], stack: Stack, artifacts: Path
) -> None:
    refusals = 4  # some two seconds of them

    def between(socket: WebSocketRoute) -> None:
        gateway = socket.connect_to_server()

        def from_page(message: str | bytes) -> None:
            nonlocal refusals
            event = json.loads(message)
            if event["type"] != "response.create" or refusals == 0:
                gateway.send(message)
                return
            refusals -= 1
            error = {"code": "no_worker", "message": "No model is being served right now: try again."}
            refusal = {"type": "error", "status": 503, "stream_id": event["stream_id"], "error": error}
            socket.send(json.dumps(refusal))

        socket.on_message(from_page)

    await page.route_web_socket("**/v1/responses", between)
    await page.reload()
    await page.evaluate(WATCH_SEAM)
    await ask(page, "Will you come back?")
    await expect(answer(page)).to_contain_text("Waiting for the service")
    await expect(connection(page)).to_have_text("Waiting for the service")
    await page.screenshot(path=artifacts / "chat-waiting.png")
    await phase(page, "truncated")
    await expect(connection(page)).to_have_text("Connected")
    await assert_no_seam(page)


IN_ANOTHER_APP = """async (gateway) => {
  const { HeadraceClient } = await import(`${gateway}/assets/headrace.js`)
  const client = new HeadraceClient(`${gateway.replace("http", "ws")}/v1/responses`)
  const deltas = []
  return await new Promise((resolve) => {
    const onEvent = (event) => {
      if (event.type === "response.output_text.delta") deltas.push(event.delta)
      if (event.type === "error") resolve(event)
      if (event.type === "response.incomplete") resolve({ deltas, output: event.response.output })
    }
    client.respond({ input: "Hello", max_output_tokens: 12 }, { onEvent })
  })
}"""


async def test_a_page_of_another_origin_uses_the_client(browser: Browser, stack: Stack) -> None:
    # Chromium asks its user before a page from elsewhere may talk to this machine.
    async with await browser.new_context(permissions=["local-network-access"]) as context:
        page = await context.new_page()
        app = "http://app.localhost/"
        await page.route(app, lambda route: route.fulfill(content_type="text/html", body="<!doctype html>"))
        await page.goto(app)
        told = await page.evaluate(IN_ANOTHER_APP, stack.url)
        assert "".join(told["deltas"]) == told["output"][0]["content"][0]["text"]
        assert len(told["deltas"]) > 1


async def test_a_refusal_is_told_and_can_be_retried(page: Page, artifacts: Path) -> None:
    model = page.get_by_label("Model")
    served = await model.input_value()
    await model.locator("option").first.evaluate("(option) => { option.value = 'gone' }")
    await ask(page, "Are you there?")
    await phase(page, "failed")
    await expect(answer(page).locator(".error")).to_contain_text("model_not_found")
    await page.screenshot(path=artifacts / "chat-error.png")

    await model.locator("option").first.evaluate("(option, name) => { option.value = name }", served)
    await answer(page).get_by_role("button", name="Try again").click()
    await phase(page, "truncated")
    await expect(page.get_by_role("article", name="You")).to_have_count(1)


async def test_waiting_in_the_queue_is_shown(open_chat: Open) -> None:
    first, second = await open_chat(), await open_chat()
    await ask(first, "I am first.")
    await longer_than(first, 0)
    await ask(second, "I am second.")
    await phase(second, "queued")
    await expect(answer(second)).to_contain_text("In line")
    await phase(first, "truncated")
    await phase(second, "truncated")


async def test_a_browser_that_keeps_no_data_can_chat(browser: Browser, stack: Stack) -> None:
    """With site data blocked, browsers throw at the very name of the storage."""
    async with await browser.new_context() as context:
        page = await context.new_page()
        await page.add_init_script(
            "for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window, name,"
            " { get() { throw new DOMException('blocked', 'SecurityError') } })"
        )
        errors: list[object] = []
        page.on("pageerror", lambda error: errors.append(error))
        await page.goto(stack.url)
        await expect(connection(page)).to_contain_text("Connected")
        await ask(page, "Do you remember me?")
        await phase(page, "truncated")
        assert errors == []


async def test_a_page_that_may_not_connect_says_why(browser: Browser, stack: Stack) -> None:
    port = stack.part("gateway").port
    async with (
        cable(port, told_host=f"127.0.0.1:{port}") as line,
        await browser.new_context() as context,
    ):
        page = await context.new_page()
        await page.goto(line.url)
        await expect(connection(page)).to_contain_text("Pages of other origins may not use this gateway.")
        await expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()


async def test_a_reader_who_scrolled_up_is_left_there(open_chat: Open) -> None:
    page = await open_chat(viewport={"width": 390, "height": 420})
    scroller = page.get_by_role("main")
    await ask(page, "Fill the screen, please.")
    await page.wait_for_function(
        "() => { const main = document.querySelector('main'); return main.scrollTop > 20 }"
    )
    await scroller.evaluate("(main) => { main.scrollTop = 0 }")
    await expect(page.get_by_role("button", name="Latest")).to_be_visible()
    await longer_than(page, await text_length(page) + 20)
    assert await scroller.evaluate("(main) => main.scrollTop") == 0
    await page.get_by_role("button", name="Latest").click()
    await phase(page, "truncated")
    await expect(page.get_by_role("button", name="Latest")).to_be_hidden()
    assert await scroller.evaluate("(main) => main.scrollHeight - main.scrollTop - main.clientHeight") < 2


@pytest.mark.vllm
@pytest.mark.timeout(600)  # the first start prepares the model
async def test_a_chat_with_the_real_model(real_stack: Stack, browser: Browser, artifacts: Path) -> None:
    async with watched_page(browser, real_stack.url) as (page, watch):
        await expect(connection(page)).to_contain_text("Connected")
        await ask(page, "What is the capital of France?")
        # What it says is drawn at random, as for any user of the page.
        ended = re.compile("completed|truncated")
        await expect(answer(page)).to_have_attribute("data-phase", ended, timeout=90_000)
        await expect(answer(page).locator(".prose")).to_contain_text(re.compile(r"\w+ \w+"))
        await expect(answer(page)).to_contain_text(re.compile(r"First token .* tokens · [\d.]+ tokens/s"))
        await page.screenshot(path=artifacts / "chat-real-model.png")
        watch.assert_clean()
