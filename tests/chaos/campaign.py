"""A run: rounds of faults under load. After each, everything must settle and every response be right."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from broker.connection import Broker
from schemas.job import Job
from schemas.reply import FinishReason
from tests.chaos import settle, truth
from tests.chaos.checks import Oracle, Violation
from tests.chaos.failover import failovers
from tests.chaos.faults import Faults, Injected, Planned, schedule
from tests.chaos.load import Load
from tests.chaos.report import Report, timeline
from tests.chaos.world import Sizes, World, running
from tests.oracle import expected_of_job
from workers.engine.sim_tokenizer import write_tokenizer

TOLD = 4  # violations of one rule
ACCIDENT_MS = 30_000.0  # a process that a fault let down may end so much later


@dataclass
class Campaign:
    """``tell``: a line for whoever watches. ``every_s``: mean time between faults."""

    world: World
    broker: Broker
    seed: int
    tell: Callable[[str], None]
    every_s: float = 4.0
    call_limit_s: float = 120.0
    leak_limit_s: float = settle.LEAK_LIMIT_S
    report: Report = field(init=False)
    _faults: list[Injected] = field(default_factory=list)
    _told: Counter[str] = field(default_factory=Counter)
    _jobs_seq: int = 1
    _replies_seq: int = 1

    def __post_init__(self) -> None:
        self.report = Report(self.seed)
        sizes = self.world.sizes
        folder, _ = write_tokenizer(self.world.folder / "tokenizer", sizes.sim.max_model_len)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._decode: Callable[[Sequence[int]], str] = lambda ids: tokenizer.decode(list(ids))

    async def round(self, number: int, seconds: float) -> None:
        sizes = self.world.sizes
        plan = schedule(
            random.Random(f"{self.seed}/{number}"), seconds, self.every_s, sizes.workers, sizes.gateways
        )
        load = Load(
            self.world.urls,
            seed=f"{self.seed}/{number}",
            clients=sizes.clients,
            grace_s=sizes.grace_s,
            call_limit_s=self.call_limit_s,
        )
        await self.strike(load, plan, seconds)

    async def strike(self, load: Load, plan: Sequence[Planned], seconds: float) -> None:
        """Load and faults for so long; then all is healed, settles and is checked."""
        faults = Faults(self.world, self.tell)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(load.run(stop), name="load")
            injecting = group.create_task(faults.run(plan), name="faults")
            watching = group.create_task(faults.watch_self(), name="watch-self")
            await asyncio.sleep(seconds)
            await injecting
            stop.set()
            await loading
            watching.cancel()
        happened = [*faults.done, *faults.stalls]
        self._faults += happened
        self.report.seconds += seconds
        self.report.rounds += 1
        self.report.faults.update(fault.kind for fault in faults.done)
        self.report.behaviours.update(call.behaviour for call in load.calls)
        await self._check(load, faults, happened)

    async def _check(self, load: Load, faults: Faults, happened: Sequence[Injected]) -> None:
        found = await settle.leaks(self.world, self.broker, self.leak_limit_s)
        if not found:
            found += await self._fill(load)
        evidence = await truth.read(self.broker, self._expect, self._jobs_seq, self._replies_seq)
        self._jobs_seq, self._replies_seq = evidence.jobs_seq, evidence.replies_seq
        gateways = {gateway.port: gateway.name for gateway in self.world.gateways}
        oracle = Oracle(self._decode, self.world.sizes, happened, gateways, self.report.outcomes)
        found += oracle.judge(load.calls, evidence.truths)
        found += [Violation("processes end when asked to", what) for what in faults.bad_stops]
        found += self._accidents(happened)
        self.report.tokens += sum(len(each.reader.ids) for each in evidence.truths.values())
        self.report.failovers += failovers(load.calls, evidence.truths, happened)
        await self._add(found)
        self.tell(
            f"round {self.report.rounds}: {len(faults.done)} faults, {len(evidence.truths)} responses, "
            f"{len(found)} violations"
        )

    async def _fill(self, load: Load) -> list[Violation]:
        """Every slot still takes a response, and gives it back."""
        slots = self.world.sizes.slots * self.world.sizes.workers

        async def full() -> bool:
            return await settle.running_responses(self.world) == slots

        await load.fill(slots, full)
        return await settle.leaks(self.world, self.broker, self.leak_limit_s)

    async def _add(self, found: Sequence[Violation]) -> None:
        """Kept, all of them; told, the first of each rule, with what led to them."""
        for violation in found:
            self.report.violations.append(violation)
            self._told[violation.rule] += 1
            if self._told[violation.rule] > TOLD:
                continue
            self.tell(
                f"VIOLATION, seed {self.seed}: {violation.rule}: {violation.response} {violation.detail}"
            )
            for line in await timeline(self.broker, violation, self._faults):
                self.tell(f"    {line}")

    def _accidents(self, faults: Sequence[Injected]) -> list[Violation]:
        """Processes that ended by themselves with nothing to excuse it."""
        accidents, self.world.accidents = self.world.accidents, []
        return [
            Violation("processes live", f"{each.part} ended by itself with status {each.status}")
            for each in accidents
            if not any(
                fault.target in (each.part, "nats") and fault.touches(each.at_ms - ACCIDENT_MS, each.at_ms)
                for fault in faults
            )
        ]

    def _expect(self, job: Job) -> tuple[list[int], FinishReason]:
        return expected_of_job(job, self.world.sizes.sim)

    async def finish(self) -> Report:
        """Ends every process in order, and reads what they have logged."""
        await self._add(await settle.stopped(self.world))
        await self._add([Violation("no bug in any log", line) for line in self.world.troubles_in_logs()])
        return self.report


@asynccontextmanager
async def campaign(
    seed: int, sizes: Sizes, tell: Callable[[str], None], *, folder: Path | None = None, **options: Any
) -> AsyncIterator[Campaign]:
    """In a world of its own; ``folder`` keeps what the processes log and store, else it is deleted."""
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as scratch:
        async with running(folder or Path(scratch), sizes) as world:
            broker = await Broker.connect(world.nats_config, name="chaos")
            try:
                yield Campaign(world, broker, seed, tell, **options)
            finally:
                await broker.close()
