"""The README's clients, run as they stand there (only the address is another)."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.e2e.stack import Stack

README = (Path(__file__).parents[2] / "README.md").read_text()
ADDRESS = "127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert all(ADDRESS in code for code in found)
    return found


@pytest.mark.parametrize(("number", "client"), [(0, "openai"), (1, "gateway.client")])
def test_the_python_clients_print_an_answer(stack: Stack, number: int, client: str) -> None:
    code = blocks("python")[number].replace(ADDRESS, stack.url.removeprefix("http://"))
    assert f"from {client} import" in code
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
    (code,) = blocks("js")
    await page.add_script_tag(content=code.replace(ADDRESS, stack.url.removeprefix("http://")), type="module")
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
