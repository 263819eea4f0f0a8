"""What is shipped, not the checkout: the wheel in an environment of its own, without vLLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.stack import Stack

ROOT = Path(__file__).parents[2]
UV = (sys.executable, "-m", "uv")


@pytest.mark.timeout(300)  # a cold download of all dependencies
def test_the_wheel_runs_on_its_own(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([*UV, "build", "--quiet", "--wheel", "--out-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("headrace-*.whl")
    subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    subprocess.run([*UV, "pip", "install", "--quiet", "--python", venv, wheel], check=True)

    stack = Stack(tmp_path / "data", headrace=[str(venv / "bin" / "headrace")])
    try:
        page = httpx.get(stack.url)
        assert "<title>" in page.text
        script = httpx.get(f"{stack.url}/assets/main.js")
        assert script.status_code == 200
        answer = httpx.post(f"{stack.url}/chat", json={"user_id": "u", "query": "hello"}, timeout=30)
        assert len(answer.json()["response"]) > 20
    finally:
        assert stack.stop() == 0, stack.output()
