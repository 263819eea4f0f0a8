"""The README's clients, run as they stand there (only the address is another)."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from playwright.async_api import Browser

from tests.e2e.stack import Stack

README = (Path(__file__).parents[2] / "README.md").read_text()
ADDRESS = "127.0.0.1:8080"


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    assert ADDRESS in found[1]
    return found[1]


def test_the_python_client_prints_an_answer(stack: Stack) -> None:
    code = block("python").replace(ADDRESS, stack.url.removeprefix("http://"))
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split()) > 3


async def test_the_javascript_client_shows_an_answer(stack: Stack, browser: Browser) -> None:
    page = await browser.new_page()
    await page.goto(f"{stack.url}/healthz")  # same origin, nothing else on it
    await page.evaluate("document.body.replaceChildren()")
    code = block("js").replace(ADDRESS, stack.url.removeprefix("http://"))
    await page.evaluate(f"{code}\nundefined")  # or its last value, a function, would be called
    async with asyncio.timeout(30):
        while len((await page.inner_text("body")).split()) < 4:
            await asyncio.sleep(0.05)
    await page.close()


def test_the_curl_line_answers(stack: Stack) -> None:
    found = re.search(r"`curl (.*?)`", README, re.DOTALL)
    assert found is not None
    line = f"curl -sf {found[1]}".replace(ADDRESS, stack.url.removeprefix("http://"))
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert '"latency_ms"' in ran.stdout
    assert '"user_id":"me"' in ran.stdout.replace(" ", "")
