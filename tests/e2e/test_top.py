"""``headrace top`` as an operator runs it: in a terminal, and in scripts."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading

import httpx
import pyte

from tests.e2e.stack import Stack, wait_until

TOP = [sys.executable, "-m", "deploy.cli", "top"]


class Terminal:
    """A real terminal of its own, and what it shows."""

    def __init__(self, command: list[str], env: dict[str, str], columns: int, lines: int) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._ours, theirs = pty.openpty()
        self.resize(columns, lines, tell=False)
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **env, "TERM": "xterm"}
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._stream.feed(os.read(self._ours, 65536))
            except OSError:  # it has ended
                return

    def resize(self, columns: int, lines: int, *, tell: bool = True) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def shows(self, *words: str) -> bool:
        text = "\n".join(self._screen.display)
        return all(word in text for word in words)

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def end(self) -> int:
        status = self.process.wait(20)
        self._reader.join()
        os.close(self._ours)
        return status


def test_in_a_terminal(stack: Stack) -> None:
    terminal = Terminal([*TOP, "--interval", "0.5"], {"HEADRACE_NATS__URL": stack.nats_url}, 80, 24)
    try:
        whole = (
            "headrace top",
            "connected",
            "1 workers",
            "headrace-sim",
            "QUEUE",
            "WORKER",
            "TENANT",
            "GATEWAY",
        )
        wait_until(lambda: terminal.shows(*whole), timeout_s=20, what="the screen")
        assert not terminal.shows("ENGINE")  # there is no room for it
        terminal.resize(140, 40)
        wait_until(lambda: terminal.shows(*whole, "ENGINE"), timeout_s=20, what="the wide screen")
        os.kill(stack.part("nats").pid, signal.SIGSTOP)
        try:
            wait_until(lambda: terminal.shows("no answer"), timeout_s=20, what="the loss of the broker")
        finally:
            os.kill(stack.part("nats").pid, signal.SIGCONT)
        wait_until(lambda: terminal.shows(*whole, "answers in"), timeout_s=20, what="the screen again")
        terminal.press("q")
        assert terminal.end() == 0
    finally:
        terminal.process.kill()


def test_in_a_script(stack: Stack) -> None:
    assert httpx.post(f"{stack.url}/v1/responses", json={"input": "hello"}, timeout=30).status_code == 200
    env = {**os.environ, "HEADRACE_NATS__URL": stack.nats_url, "COLUMNS": "100"}
    shown = subprocess.run([*TOP, "--json"], env=env, capture_output=True, text=True, check=True)
    snapshot = json.loads(shown.stdout)
    assert snapshot["connected"]
    assert snapshot["workers"][0]["model"] == "headrace-sim"
    assert [stream["stream"] for stream in snapshot["streams"]] == ["JOBS", "REPLIES", "DEAD"]
    plain = subprocess.run([*TOP, "--once"], env=env, capture_output=True, text=True, check=True)
    assert "headrace-sim" in plain.stdout
    assert "\x1b" not in plain.stdout
    refused = subprocess.run(TOP, env=env, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr) == (
        2,
        "headrace: this is no terminal: take --once or --json\n",
    )
    nobody = {**env, "HEADRACE_NATS__URL": "nats://127.0.0.1:1"}
    lost = subprocess.run([*TOP, "--once"], env=nobody, capture_output=True, text=True)
    assert lost.returncode == 2
    assert "no NATS server at nats://127.0.0.1:1" in lost.stderr
