"""The supervisor over small real processes that behave badly."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker import child
from deploy.parts import Part
from deploy.ports import Ports, PortTaken
from deploy.supervisor import Keeper, State, Supervisor
from tests.process_tree import is_running

SLEEPS = "import signal; signal.pause()"
IGNORES_SIGTERM = (
    "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
)
LIMIT_S = 30


class Events:
    """A report that remembers."""

    def __init__(self) -> None:
        self.states: list[tuple[str, State]] = []
        self.crashes: list[tuple[str, str, list[str], float | None]] = []

    def changed(self, keeper: Keeper) -> None:
        self.states.append((keeper.part.id, keeper.state))

    def crashed(self, keeper: Keeper, how: str, last_lines: list[str], retry_s: float | None) -> None:
        self.crashes.append((keeper.part.id, how, last_lines, retry_s))


class Running:
    def __init__(self, tmp_path: Path, *stages: list[Part], stop_margin_s: float = 10.0) -> None:
        self.events = Events()
        self._tmp_path = tmp_path
        self.supervisor = Supervisor(
            stages, self.log, self.events, lambda _: None, stop_margin_s=stop_margin_s
        )

    def log(self, part_id: str) -> Path:
        return self._tmp_path / f"{part_id}.log"

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await asyncio.sleep(0.01)


def part(part_id: str, code: str, ready: Callable[[], bool] = lambda: True) -> Part:
    async def probe() -> bool:
        return ready()

    return Part("worker", part_id, 0, (sys.executable, "-c", code), probe)


async def test_stages_start_in_order_and_kinds_stop_in_order(tmp_path: Path) -> None:
    first, second = part("first", SLEEPS), part("second", SLEEPS)
    running = Running(tmp_path, [first], [second])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(running.supervisor.run([["worker"]]))
        await running.until(lambda: running.supervisor.settled)
        running.supervisor.ask_to_stop()
    assert task.result() is True
    states = running.events.states
    assert states.index(("first", "ready")) < states.index(("second", "starting"))
    assert states[-2:] == [("first", "stopped"), ("second", "stopped")] or states[-2:] == [
        ("second", "stopped"),
        ("first", "stopped"),
    ]


async def test_a_refused_configuration_is_not_tried_again(tmp_path: Path) -> None:
    running = Running(tmp_path, [part("bad", "import sys; print('no such key'); sys.exit(2)", lambda: False)])
    assert await running.supervisor.run([["worker"]]) is False
    assert running.events.crashes == [("bad", "exited with code 2", ["no such key"], None)]


async def test_what_never_starts_is_given_up(tmp_path: Path) -> None:
    running = Running(tmp_path, [part("bad", "import sys; sys.exit(1)", lambda: False)])
    assert await running.supervisor.run([["worker"]]) is False
    assert [retry_s for *_, retry_s in running.events.crashes] == [0.2, 0.4, 0.8, 1.6, None]


async def test_a_part_that_cannot_be_started_counts_as_a_crash(tmp_path: Path) -> None:
    """Here for want of the folder of its log; no memory or no file descriptor is the same."""
    running = Running(tmp_path / "later", [part("late", SLEEPS)])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(running.supervisor.run([["worker"]]))
        await running.until(lambda: running.events.crashes)
        (tmp_path / "later").mkdir()
        await running.until(lambda: running.supervisor.settled)
        running.log("late").unlink()
        assert running.supervisor.keepers[0].last_lines() == []
        running.supervisor.ask_to_stop()
    assert task.result() is True
    part_id, how, last_lines, retry_s = running.events.crashes[0]
    assert (part_id, last_lines, retry_s) == ("late", [], 0.2)
    assert how.startswith("cannot be started: ")
    assert "No such file or directory" in how


async def test_a_crash_takes_what_it_left_behind_with_it(tmp_path: Path) -> None:
    """An engine's own process holds its memory: the next one would find none."""
    start = f"p = subprocess.Popen([sys.executable, '-c', {SLEEPS!r}])"
    code = f"import subprocess, sys; {start}; print(p.pid, flush=True); p.wait()"
    running = Running(tmp_path, [part("parent", code)])
    log = running.log("parent")
    async with asyncio.TaskGroup() as group:
        group.create_task(running.supervisor.run([["worker"]]))
        await running.until(lambda: log.exists() and log.read_text().strip())
        (keeper,) = running.supervisor.keepers
        orphan, killed = int(log.read_text()), keeper.pid
        os.kill(killed, signal.SIGKILL)
        await running.until(lambda: keeper.pid != killed)
        await running.until(lambda: not is_running(orphan))
        running.supervisor.ask_to_stop()
    assert running.events.crashes[0][1] == "was killed by SIGKILL"


async def test_what_does_not_stop_is_killed(tmp_path: Path) -> None:
    running = Running(tmp_path, [part("deaf", IGNORES_SIGTERM)], stop_margin_s=0.2)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(running.supervisor.run([["worker"]]))
        await running.until(lambda: running.log("deaf").exists() and running.log("deaf").read_text())
        running.supervisor.ask_to_stop()
    assert task.result() is True
    assert not is_running(running.supervisor.keepers[0].pid)


async def test_what_answers_no_more_is_started_again(tmp_path: Path) -> None:
    answering = True
    hangs = dataclasses.replace(part("hangs", SLEEPS, lambda: answering), hang_s=0.2)
    running = Running(tmp_path, [hangs])
    async with asyncio.TaskGroup() as group:
        group.create_task(running.supervisor.run([["worker"]]))
        await running.until(lambda: running.supervisor.settled)
        (keeper,) = running.supervisor.keepers
        first = keeper.pid
        answering = False
        await running.until(lambda: running.events.crashes)
        answering = True
        await running.until(lambda: keeper.pid != first and keeper.state == "ready")
        running.supervisor.ask_to_stop()
    assert [crash[1] for crash in running.events.crashes] == ["was killed by SIGKILL"]


async def test_asking_twice_stops_at_once(tmp_path: Path) -> None:
    running = Running(tmp_path, [part("deaf", IGNORES_SIGTERM)], stop_margin_s=3600)
    async with asyncio.TaskGroup() as group:
        group.create_task(running.supervisor.run([["worker"]]))
        await running.until(lambda: running.log("deaf").exists() and running.log("deaf").read_text())
        running.supervisor.ask_to_stop()
        await running.until(lambda: ("deaf", "stopping") in running.events.states)
        running.supervisor.ask_to_stop()
    assert not is_running(running.supervisor.keepers[0].pid)


def test_a_child_of_a_dead_parent_does_not_start() -> None:
    script = [sys.executable, "-I", "-S", str(child.__file__)]
    done = subprocess.run(
        [*script, "1", sys.executable, "-c", "print('ran')"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "the parent process is gone" in done.stderr


def test_ports_are_free_and_given_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)):
            Ports().exactly("127.0.0.1", port)
        assert Ports().at_or_above("127.0.0.1", port) > port
    ports = Ports()
    given = [ports.at_or_above("127.0.0.1", 0) for _ in range(20)]
    assert len(set(given)) == 20
