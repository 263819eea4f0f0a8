"""Runs the product as a user does: one `headrace up`, its real processes, and what run.json tells of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.process_tree import children

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], *, timeout_s: float, what: str) -> T:
    """The first true value of ``condition``; fails loudly with ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


@dataclass(frozen=True)
class Part:
    kind: str
    id: str
    pid: int
    port: int


class Stack:
    """``headrace up`` in ``data_dir``. ``env`` is configuration by environment, as an operator sets it;
    ``headrace`` the command, where it is not this checkout's."""

    def __init__(
        self,
        data_dir: Path,
        *,
        engine: str = "sim",
        workers: int = 1,
        gateways: int = 1,
        model: str | Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        headrace: Sequence[str] = (sys.executable, "-m", "deploy.cli"),
        ready_timeout_s: float = 60,
    ) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")
        command = [*headrace, "up", "--engine", engine, "--port", "0"]
        command += ["--workers", str(workers), "--gateways", str(gateways), "--data-dir", str(data_dir)]
        for name in [model] if isinstance(model, str) else model or ():
            command += ["--model", name]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=data_dir.parent,
            )
        try:
            self.url: str = self._wait_for_url(ready_timeout_s)
        except BaseException:
            self.stop()
            raise

    def _wait_for_url(self, timeout_s: float) -> str:
        def ready() -> str | None:
            if self.process.poll() is not None:
                raise AssertionError(f"headrace up ended early:\n{self.output()}")
            gateways = self.parts("gateway")
            if gateways and all(is_ready(f"http://127.0.0.1:{part.port}") for part in gateways):
                url: str = self.run_file()["url"]
                return url
            return None

        try:
            return wait_until(ready, timeout_s=timeout_s, what="a ready gateway")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from None

    def output(self) -> str:
        """What `headrace up` printed, and the end of each part's log."""
        logs = sorted((self.data_dir / "logs").glob("*.log"))
        tails = [f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs]
        return "\n".join([self.log.read_text(errors="replace")[-3000:], *tails])

    def run_file(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.data_dir / "run.json").read_text())
        except FileNotFoundError:
            return {"url": "", "parts": []}
        return content

    def parts(self, kind: str | None = None) -> list[Part]:
        parts = [Part(p["kind"], p["id"], p["pid"], p["port"]) for p in self.run_file()["parts"]]
        return [part for part in parts if kind in (None, part.kind)]

    def part(self, kind: str) -> Part:
        return self.parts(kind)[0]

    @property
    def gateway_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{part.port}" for part in self.parts("gateway")]

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.part('nats').port}"

    def metrics(self, kind: str, index: int = 0) -> str:
        return httpx.get(f"http://127.0.0.1:{self.parts(kind)[index].port}/metrics").text

    def kill_gateway(self) -> int:
        """kill -9 of the first gateway; returns the dead pid. The supervisor starts a new one."""
        return self.kill("gateway")

    def kill(self, kind: str, sig: signal.Signals = signal.SIGKILL) -> int:
        pid = self.part(kind).pid
        os.kill(pid, sig)
        return pid

    def kill_worker_process(self) -> None:
        """kill -9 of what the first worker's guardian guards: the process with the engine."""
        (worker,) = children(self.part("worker").pid)
        os.kill(worker, signal.SIGKILL)

    def wait_replaced(self, kind: str, pid: int, *, timeout_s: float = 30) -> Part:
        """The part that stands where the dead ``pid`` stood, once the gateway says it is ready again."""
        part = wait_until(
            lambda: next((p for p in self.parts(kind)[:1] if p.pid != pid), None),
            timeout_s=timeout_s,
            what=f"a new {kind} in place of pid {pid}",
        )
        wait_until(lambda: is_ready(self.url), timeout_s=timeout_s, what="a ready gateway")
        return part

    def stop(self, *, timeout_s: float = 40) -> int:
        """Ctrl-C; returns the exit code. Not stopped within the limit is an error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"headrace up did not stop:\n{self.output()}") from None


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
