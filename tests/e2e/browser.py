"""Headless Chromium for tests: finds it, starts it, and records all that a page must not do.

Knows nothing of any page. ``tests/install-browser`` puts a browser where this looks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    WebSocket,
    async_playwright,
    expect,
)

TIMEOUT_MS = 20_000  # of any one condition: machines that test are slow and shared
expect.set_options(timeout=TIMEOUT_MS)

FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE = {"width": 1180, "height": 800}
PHONE = {"width": 390, "height": 844}


def find_chromium() -> str:
    """Its path: ``CHROMIUM_PATH``, the one ``tests/install-browser`` unpacked, or one on PATH."""
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        return named
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    unpacked = sorted((cache / "headrace").glob("chromium-*/chromium"))
    found = [str(path) for path in unpacked[-1:]]
    found += [path for name in ("chromium", "google-chrome") if (path := shutil.which(name))]
    if not found:
        raise FileNotFoundError("no Chromium for the browser tests: run tests/install-browser")
    return found[0]


@dataclass
class Watch:
    """What a page did that a well-behaved page does not, and what it loaded."""

    origin: str
    console: list[str] = field(default_factory=list)  # errors and warnings, uncaught exceptions
    csp_violations: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)  # requests to other origins
    loaded: list[str] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)  # over WebSockets
    received: list[dict[str, Any]] = field(default_factory=list)

    def saw_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.console.append(f"{message.type}: {message.text}")

    def saw_violation(self, violation: str) -> None:
        self.csp_violations.append(violation)

    def saw_request(self, request: Request) -> None:
        self._saw_url(request.url)

    def _saw_url(self, url: str) -> None:
        self.loaded.append(url)
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self.origin).netloc:
            self.foreign.append(url)

    def saw_websocket(self, socket: WebSocket) -> None:
        self._saw_url(socket.url)
        socket.on("framesent", lambda frame: self.sent.append(json.loads(frame)))
        socket.on("framereceived", lambda frame: self.received.append(json.loads(frame)))

    def forgive_lost_connections(self) -> None:
        """What Chromium itself writes into the console when a WebSocket breaks, which no page can prevent."""
        self.console = [line for line in self.console if "WebSocket connection" not in line]

    def assert_clean(self) -> None:
        assert self.console == []
        assert self.csp_violations == []
        assert self.foreign == []


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=find_chromium(), headless=True, chromium_sandbox=os.getuid() != 0, args=FLAGS
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def watched_page(browser: Browser, url: str, **context: Any) -> AsyncIterator[tuple[Page, Watch]]:
    """Opens ``url`` in a fresh context (no cookies, no storage); ``context``: options of ``new_context``."""
    watch = Watch(url)
    async with await browser.new_context(**{"viewport": WIDE, **context}) as opened:
        page = await opened.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", watch.saw_console)
        page.on("pageerror", lambda error: watch.console.append(f"uncaught: {error}"))
        page.on("request", watch.saw_request)
        page.on("websocket", watch.saw_websocket)
        await page.expose_function("reportViolation", watch.saw_violation)
        await page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) =>"
            " window.reportViolation(`${event.violatedDirective}: ${event.blockedURI}`))"
        )
        await page.goto(url)
        yield page, watch
