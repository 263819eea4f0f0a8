"""Keeps parts running: starts them in order, restarts what crashes, stops them in order. Must not know
what the parts are, how they are shown, or where their state is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from broker.backoff import Backoff
from broker.child_process import ChildProcess, describe_exit
from deploy.parts import Part

_PROBE_INTERVAL_S = 0.1
_WATCH_INTERVAL_S = 1.0
_USAGE_ERROR = 2  # a part's exit code for a configuration it refuses: the same every time
_CRASHES_AT_START = 5  # in a row, before all has ever been ready: give up

State = Literal["waiting", "starting", "ready", "crashed", "stopping", "stopped"]


class Report(Protocol):
    """Where progress is shown."""

    def changed(self, keeper: Keeper) -> None: ...

    def crashed(self, keeper: Keeper, how: str, last_lines: list[str], retry_s: float | None) -> None: ...


class Keeper:
    """One part, and the process that is it at the moment."""

    def __init__(self, part: Part, log: Path | None, report: Report, changed: Callable[[], None]) -> None:
        self.part = part
        self.state: State = "waiting"
        self.pid = 0
        self.state_since_s = 0.0  # on the event loop's clock
        self.gave_up = False
        self._log = log
        self._report = report
        self._changed = changed
        self._process: ChildProcess | None = None
        self._stopping = asyncio.Event()

    async def keep(self, *, settled: Callable[[], bool]) -> None:
        """Runs until stopped. ``settled``: all parts have been ready once; from then on never gives up."""
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                self._process = await ChildProcess.start(
                    self.part.argv, self.part.environ, self._log, given=self.part.given
                )
            except OSError as error:  # no memory, no file descriptor, no room on the disk: it may pass
                self._process, self.pid = None, 0
                how, hopeless, healthy_s = f"cannot be started: {error}", False, 0.0
            else:
                status, healthy_s = await self._run(self._process)
                how, hopeless = describe_exit(status), status == _USAGE_ERROR
            if self._stopping.is_set():
                break
            delay_s = backoff.crashed(healthy_s)
            self.gave_up = (hopeless or backoff.crashes >= _CRASHES_AT_START) and not settled()
            self._report.crashed(self, how, self.last_lines(), None if self.gave_up else delay_s)
            self._enter("crashed")
            if self.gave_up:
                return
            await self._stopping_within(delay_s)
        self._enter("stopped")

    def terminate(self) -> None:
        """Asks it to stop, and starts it no more."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
        if self.running:
            self._enter("stopping")

    def kill(self) -> None:
        self._stopping.set()
        if self._process is not None and self.running:
            self._process.kill()

    @property
    def running(self) -> bool:
        return self.state in ("starting", "ready", "stopping")

    def last_lines(self) -> list[str]:
        return self._process.last_lines() if self._process is not None else []

    async def _run(self, process: ChildProcess) -> tuple[int, float]:
        """The exit status, and how long it had been ready."""
        self.pid = process.pid
        self._enter("starting")
        if self._stopping.is_set():  # asked while the process was being made
            process.kill()
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            probing = group.create_task(self._probe(process), name=f"probe {self.part.id}")
            status = await process.wait()
            probing.cancel()
        healthy_s = loop.time() - self.state_since_s if self.state == "ready" else 0.0
        return status, healthy_s

    async def _probe(self, process: ChildProcess) -> None:
        while not await self.part.ready():  # noqa: ASYNC110 - the part is another process, it sets no event
            await asyncio.sleep(_PROBE_INTERVAL_S)
        if self.state == "starting":
            self._enter("ready")
        if self.part.hang_s:
            await self._while_it_answers()
            process.kill()

    async def _while_it_answers(self) -> None:
        clock = asyncio.get_running_loop().time
        answered_s = clock()
        while clock() - answered_s < self.part.hang_s:
            await asyncio.sleep(min(_WATCH_INTERVAL_S, self.part.hang_s / 4))
            if await self.part.ready():
                answered_s = clock()

    async def _stopping_within(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _enter(self, state: State) -> None:
        self.state = state
        self.state_since_s = asyncio.get_running_loop().time()
        self._report.changed(self)
        self._changed()


class Supervisor:
    """``stages``: parts of a stage start together, when all parts of the stages before are ready.
    ``log_file``: where a part writes; None: to our own output. ``observe`` is called after every change of
    any part. A part that has not stopped ``stop_margin_s`` after its own drain time is killed."""

    def __init__(
        self,
        stages: Sequence[Sequence[Part]],
        log_file: Callable[[str], Path | None],
        report: Report,
        observe: Callable[[Supervisor], None],
        stop_margin_s: float = 10.0,
    ) -> None:
        self._change = asyncio.Event()
        self._observe = observe
        self._stop_margin_s = stop_margin_s
        self._stop_asked = 0
        self.settled = False  # all parts have been ready once
        self._stages = [
            [Keeper(part, log_file(part.id), report, self._note_change) for part in stage] for stage in stages
        ]
        self.keepers = [keeper for stage in self._stages for keeper in stage]

    async def run(self, stop_order: Sequence[Sequence[str]]) -> bool:
        """Until asked to stop, or a part cannot be started (returns False). ``stop_order``: kinds of parts;
        those named together stop together, when all named before them have ended."""
        async with asyncio.TaskGroup() as group:
            for stage in self._stages:
                for keeper in stage:
                    keep = keeper.keep(settled=lambda: self.settled)
                    group.create_task(keep, name=f"keep {keeper.part.id}")
                await self._until(partial(self._ready_or_ending, stage))
                if self._ending:
                    break
            else:
                self.settled = True
                self._note_change()
                await self._until(lambda: self._ending)
            for kinds in stop_order:
                await self._stop([k for k in self.keepers if k.part.kind in kinds])
        return not any(keeper.gave_up for keeper in self.keepers)

    def ask_to_stop(self) -> None:
        """The first time in order, with time to drain; the second time at once."""
        self._stop_asked += 1
        if self._stop_asked > 1:
            for keeper in self.keepers:
                keeper.kill()
        self._note_change()

    @property
    def _ending(self) -> bool:
        return self._stop_asked > 0 or any(keeper.gave_up for keeper in self.keepers)

    async def _stop(self, keepers: list[Keeper]) -> None:
        for keeper in keepers:
            keeper.terminate()
        try:
            drain_s = max((keeper.part.drain_s for keeper in keepers), default=0.0)
            async with asyncio.timeout(drain_s + self._stop_margin_s):
                await self._until(lambda: not any(keeper.running for keeper in keepers))
        except TimeoutError:
            for keeper in keepers:
                keeper.kill()
            await self._until(lambda: not any(keeper.running for keeper in keepers))

    def _ready_or_ending(self, stage: Sequence[Keeper]) -> bool:
        return self._ending or all(keeper.state == "ready" for keeper in stage)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._change.clear()
            await self._change.wait()

    def _note_change(self) -> None:
        self._change.set()
        self._observe(self)
