"""The clients of one load process: when each conversation begins, and its turns. Must not know the
controller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import count, islice
from math import inf

from deploy.bench.alarm import Alarm
from deploy.bench.arrivals import arrivals
from deploy.bench.dialogue import Dialogue
from deploy.bench.exchange import Exchange, Recorder
from deploy.bench.plan import ClosedLoop, OpenLoop, Plan
from deploy.bench.pool import Connection, Pool, Unreachable
from deploy.bench.scripts import Scripts
from deploy.bench.streams import End, stream_of
from deploy.bench.tally import Totals

_PULSE_S = 0.025
_AFTER_FAILURE_S = 0.5  # a client of a closed loop asks no faster than this where it is not answered


class Clients:
    """Those of the process ``index`` among ``plan.processes``; the measurement's warm-up begins at ``at_s``
    of ``time.monotonic()``. ``recorder`` counts as it goes."""

    def __init__(self, plan: Plan, index: int, api_key: str) -> None:
        self._plan = plan
        self._index = index
        self._scripts = Scripts(plan.workload, plan.seed)
        self._pools = [Pool(address, plan.target.api, api_key) for address in plan.target.addresses()]
        self._in_flight = 0

    async def warm(self) -> None:
        """The connections that a closed loop needs are open before it begins."""
        if isinstance(self._plan.load, ClosedLoop):
            own = len(self._own(range(self._plan.load.concurrency)))
            for number, pool in enumerate(self._pools):
                await pool.warm(len(range(number, own, len(self._pools))))

    def begin(self, at_s: float) -> Recorder:
        plan = self._plan
        self._at_s = at_s
        begins_s = at_s if plan.conversations else at_s + plan.warmup_s
        duration_s = inf if plan.conversations else float(plan.duration_s)
        self._ends_s = begins_s + duration_s
        self._recorder = Recorder(begins_s, duration_s)
        return self._recorder

    async def run(self, stop: asyncio.Event) -> Totals:
        """Until all has ended, the grace is over, or ``stop`` is set."""
        with Alarm() as self._alarm:
            async with asyncio.TaskGroup() as tasks:
                pulse = tasks.create_task(self._pulse(), name="pulse")
                work = tasks.create_task(self._work(), name="work")
                stopping = tasks.create_task(stop.wait(), name="stop")
                left_s = self._ends_s + self._plan.grace_s - time.monotonic()
                await asyncio.wait(
                    {work, stopping},
                    timeout=None if left_s == inf else left_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in (work, pulse, stopping):
                    task.cancel()
        totals = self._recorder.totals
        totals.connections = sum(pool.opened for pool in self._pools)
        for pool in self._pools:
            pool.close()
        return totals

    # -- when conversations begin -----------------------------------------------------------------------

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            if isinstance(self._plan.load, OpenLoop):
                await self._open_loop(self._plan.load, tasks)
            else:
                numbers = self._numbers()
                for client in self._own(range(self._plan.load.concurrency)):
                    tasks.create_task(self._closed_loop(numbers), name=f"client {client}")

    async def _open_loop(self, load: OpenLoop, tasks: asyncio.TaskGroup) -> None:
        plan = self._plan
        schedule = islice(arrivals(load, plan.seed), plan.conversations or None)
        for number, offset_s in islice(schedule, self._index, None, plan.processes):
            due_s = self._at_s + offset_s
            if due_s >= self._ends_s:
                break
            dialogue = self._dialogue(number)
            await self._alarm.until(due_s)
            if self._in_flight >= plan.max_in_flight // plan.processes:
                self._recorder.dropped(due_s)
            else:
                tasks.create_task(self._converse(number, dialogue, due_s), name=f"conversation {number}")

    async def _closed_loop(self, numbers: Iterator[int]) -> None:
        await self._alarm.until(self._at_s)
        for number in numbers:
            dialogue = self._dialogue(number)
            due_s = time.monotonic()
            if due_s >= self._ends_s:
                break
            if not await self._converse(number, dialogue, due_s):
                await asyncio.sleep(_AFTER_FAILURE_S)

    def _numbers(self) -> Iterator[int]:
        """Of the conversations of this process; its clients take the next in turn."""
        plan = self._plan
        every = range(plan.conversations) if plan.conversations else count()
        return islice(every, self._index, None, plan.processes)

    def _own(self, clients: range) -> range:
        return clients[self._index :: self._plan.processes]

    # -- one conversation -------------------------------------------------------------------------------

    def _dialogue(self, number: int) -> Dialogue:
        return Dialogue(self._plan.target, self._plan.workload, self._scripts.conversation(number))

    async def _converse(self, number: int, dialogue: Dialogue, due_s: float) -> bool:
        """Whether every turn was answered."""
        pool = self._pools[number % len(self._pools)]
        self._in_flight += 1
        try:
            while True:
                asked = await self._ask(pool, dialogue, due_s)
                if asked.outcome != "completed":
                    return False
                dialogue.answered(asked.stream.text, asked.stream.response_id)
                if dialogue.over:
                    return True
                due_s = asked.end_s + dialogue.turn.think_s
                if due_s >= self._ends_s:
                    return True
                await self._alarm.until(due_s)
        finally:
            self._in_flight -= 1

    async def _ask(self, pool: Pool, dialogue: Dialogue, due_s: float) -> Exchange:
        stream = stream_of(self._plan.target.api, keep_text=dialogue.keeps_text)
        asked = Exchange(self._recorder, stream, due_s, dialogue.turn.max_tokens)
        self._recorder.sent(due_s, time.monotonic())
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                connection = await pool.connection()
                connection.ask(dialogue.next_body, asked)
                await asked.settled
        except Unreachable as error:
            asked.over(error.end, time.monotonic())
        except TimeoutError:
            asked.over(End("timed_out", f"no end within {self._plan.timeout_s:g} s"), time.monotonic())
        except asyncio.CancelledError:
            asked.over(End("unfinished"), time.monotonic())
            raise
        finally:
            if connection is not None and connection.busy_with(asked):
                connection.abort()
        return asked

    # -- how well this process keeps up -------------------------------------------------------------------

    async def _pulse(self) -> None:
        """Wakes at even times. Times that it slept through count, too, each with its own lateness."""
        await self._alarm.until(self._at_s)
        due_s = time.monotonic()
        cpu_s = time.process_time()
        while True:
            due_s += _PULSE_S
            await self._alarm.until(due_s)
            now_s = time.monotonic()
            window = self._recorder.window(self._recorder.number(now_s))
            window.lag.record_s(now_s - due_s)
            used_s = time.process_time()
            window.cpu_s += used_s - cpu_s
            cpu_s = used_s
