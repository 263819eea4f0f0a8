"""Starts the load processes of one measurement, begins them together, and adds up what they count."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from pathlib import Path

import msgspec

from broker import child
from broker.child_process import describe_exit
from deploy.bench.channel import Channel, Counted, Done, Go, Ready, Stop, ToController, ToLoad, Work
from deploy.bench.plan import Plan
from deploy.bench.result import Step
from deploy.bench.scripts import Scripts
from deploy.bench.summary import step_of
from deploy.bench.tally import Totals, Window

_HEAD_START_S = 0.1  # for the word to reach every process before the time that it names


class BenchError(Exception):
    """The measurement could not be made."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is. ``at_s``: since the measured time began; ``window``: the last second that all processes
    have told of."""

    plan: Plan
    at_s: float
    sent: int
    completed: int
    not_completed: int
    window: Window

    @property
    def in_flight(self) -> int:
        return self.sent - self.completed - self.not_completed


Watch = Callable[[Snapshot], None]


async def measure(
    plan: Plan, api_key: str = "", *, watch: Watch | None = None, stop: asyncio.Event | None = None
) -> Step:
    """Carries out one measurement. ``watch`` is called about once a second; ``stop`` ends it early, with what
    was measured until then. Raises ``BenchError``."""
    try:
        plan.target.addresses()
        Scripts(plan.workload, plan.seed)
    except ValueError as error:
        raise BenchError(str(error)) from error
    async with AsyncExitStack() as stack:
        loads = [
            await stack.enter_async_context(_load_process(plan, index, api_key))
            for index in range(plan.processes)
        ]
        for load in loads:
            await load.expect(Ready)
        gathered = Gathered(plan, time.monotonic() + _HEAD_START_S)
        for load in loads:
            await load.send(Go(gathered.at_s))
        busy = _Busy()
        failure: BenchError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                helpers = [tasks.create_task(busy.observe(gathered.begins_s, plan), name="observe")]
                if stop is not None:
                    helpers.append(tasks.create_task(_stop_all(loads, gathered, stop), name="stop"))
                gathering = [
                    tasks.create_task(_gather(load, index, gathered, watch), name=f"gather {index}")
                    for index, load in enumerate(loads)
                ]
                await asyncio.wait(gathering)
                for helper in helpers:
                    helper.cancel()
        except* BenchError as group:
            failure = next(error for error in group.exceptions if isinstance(error, BenchError))
        if failure is not None:
            raise failure
    span_s = min(gathered.span_s, gathered.totals.last_end_s) if plan.conversations else gathered.span_s
    return step_of(plan.load, gathered.windows, gathered.totals, span_s=max(span_s, 1e-3), busy=busy.share())


class Gathered:
    """Of all load processes; each has windows of its own."""

    def __init__(self, plan: Plan, at_s: float) -> None:
        self.plan = plan
        self.at_s = at_s
        self.begins_s = at_s if plan.conversations else at_s + plan.warmup_s
        self.span_s = inf if plan.conversations else float(plan.duration_s)
        self.windows: list[dict[int, Window]] = [{} for _ in range(plan.processes)]
        self.totals = Totals()

    def add(self, index: int, fresh: dict[int, Window]) -> None:
        windows = self.windows[index]
        for number, window in fresh.items():
            windows.setdefault(number, Window()).add(window)

    def snapshot(self) -> Snapshot:
        every = [window for windows in self.windows for window in windows.values()]
        last = min(max(windows, default=0) for windows in self.windows) - 1
        shown = Window()
        for windows in self.windows:
            shown.add(windows.get(last, Window()))
        ended = sum(sum(window.ended.values()) for window in every)
        dropped = sum(window.ended.get("dropped", 0) for window in every)
        completed = sum(window.ended.get("completed", 0) for window in every)
        return Snapshot(
            plan=self.plan,
            at_s=time.monotonic() - self.begins_s,
            sent=sum(window.sent for window in every) + dropped,
            completed=completed,
            not_completed=ended - completed,
            window=shown,
        )


class _LoadProcess:
    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self._process = process
        self._channel = channel

    async def send(self, message: ToLoad) -> None:
        try:
            await self._channel.send(message)
        except ConnectionError as error:
            raise await self._died() from error

    async def received(self) -> ToController:
        try:
            message = await self._channel.received()
        except EOFError as error:
            raise await self._died() from error
        assert isinstance(message, ToController)
        return message

    async def expect(self, kind: type[Ready]) -> None:
        assert isinstance(await self.received(), kind)

    async def _died(self) -> BenchError:
        return BenchError(f"a load process {describe_exit(await self._process.wait())}")


@asynccontextmanager
async def _load_process(plan: Plan, index: int, api_key: str) -> AsyncIterator[_LoadProcess]:
    """It does not outlive this context, nor this process."""
    ours, theirs = socket.socketpair()
    with theirs:
        argv = (sys.executable, "-P", "-m", "deploy.bench.process", str(theirs.fileno()))
        # Not as a ChildProcess: uvloop, which callers run, cannot make process groups. A session of its own
        # keeps the terminal's Ctrl-C from it just as well.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(child.__file__), str(os.getpid()), *argv),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    channel = Channel(*await asyncio.open_unix_connection(sock=ours))
    try:
        load = _LoadProcess(process, channel)
        await load.send(Work(plan, index, api_key))
        yield load
    finally:
        channel.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _gather(load: _LoadProcess, index: int, gathered: Gathered, watch: Watch | None) -> None:
    while True:
        match await load.received():
            case Counted(windows):
                gathered.add(index, windows)
                if watch is not None and index == 0:
                    watch(gathered.snapshot())
            case Done(totals):
                gathered.totals.add(totals)
                return


async def _stop_all(loads: list[_LoadProcess], gathered: Gathered, stop: asyncio.Event) -> None:
    await stop.wait()
    gathered.span_s = min(gathered.span_s, time.monotonic() - gathered.begins_s)
    for load in loads:
        await load.send(Stop())


class _Busy:
    """The share of the machine's cores that was in use, by proc(5)'s ``/proc/stat``."""

    def __init__(self) -> None:
        self._begun = self._ended = _cpu_ticks()

    async def observe(self, begins_s: float, plan: Plan) -> None:
        await asyncio.sleep(begins_s - time.monotonic())
        self._begun = _cpu_ticks()
        if not plan.conversations:
            await asyncio.sleep(begins_s + plan.duration_s - time.monotonic())
            self._ended = _cpu_ticks()

    def share(self) -> float:
        used, whole = self._ended if self._ended > self._begun else _cpu_ticks()
        return (used - self._begun[0]) / max(1, whole - self._begun[1])


def _cpu_ticks() -> tuple[int, int]:
    """In use, and in all; over all cores since they were started."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, line.split()[1:9])
    used = user + nice + system + irq + softirq + steal
    return used, used + idle + iowait
