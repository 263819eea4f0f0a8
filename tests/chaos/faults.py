"""What is done to the world, and when: a schedule drawn from a seed, and how each fault is carried out.

Faults overlap, but the schedule leaves one worker and one gateway untouched at any time, as an installation
with one spare machine has it. Must not know what clients do.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.chaos.world import Part, World, now_ms, send, until

Target = Literal["worker", "gateway", "workers", "nats", "valkey"]
RECOVERY_S = 4.0  # a process's start, in the schedule's reckoning
HEAL_LIMIT_S = 60.0
STALL_S, STALL_LOOK_S = 0.25, 0.05
TRIES = 8  # to find a fault that may happen now


@dataclass(frozen=True)
class Kind:
    """``lasts_s``: drawn between these. ``weight``: how often. ``restarts``: a process starts anew."""

    name: str
    target: Target
    weight: float
    lasts_s: tuple[float, float] = (0, 0)
    restarts: bool = False


KINDS = (
    Kind("worker process killed", "worker", 4),
    Kind("worker host gone", "worker", 3, (0, 1), restarts=True),
    Kind("worker paused", "worker", 3, (1, 8)),
    Kind("worker drained", "worker", 3, restarts=True),
    Kind("worker cut off", "worker", 2, (1, 6)),
    Kind("worker blackholed", "worker", 2, (1, 6)),
    Kind("worker link lost", "worker", 1, (1, 3)),
    Kind("all workers restarted in turn", "workers", 2, restarts=True),  # it seldom fits
    Kind("gateway killed", "gateway", 3, (0, 1), restarts=True),
    Kind("gateway drained", "gateway", 2, restarts=True),
    Kind("gateway paused", "gateway", 1.5, (1, 5)),
    Kind("gateway cut off", "gateway", 2, (1, 6)),
    Kind("gateway blackholed", "gateway", 1, (1, 6)),
    Kind("nats killed", "nats", 1, (0, 1.5)),
    Kind("nats paused", "nats", 1, (1, 3)),
    Kind("valkey killed", "valkey", 0.7, (0, 2)),
    Kind("valkey flushed", "valkey", 0.5),
)
STALL = "the checker stalled"  # not injected: the machine kept this program from running
BY_NAME = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True)
class Planned:
    """``at_s``: after the load has begun. ``index``: which worker or gateway."""

    at_s: float
    kind: Kind
    index: int
    lasts_s: float

    @property
    def busy_until_s(self) -> float:
        return self.at_s + self.lasts_s + RECOVERY_S * (1 + 0.5 * self.kind.restarts)


@dataclass
class Injected:
    """Times are unix milliseconds. ``worker_id``: who was struck, as reply logs name it. ``healed_ms``: when
    the target served again; None while it does not."""

    kind: str
    target: str
    at_ms: float
    lasts_s: float = 0.0
    healed_ms: float | None = None
    worker_id: str = ""

    def touches(self, from_ms: float, until_ms: float) -> bool:
        return self.at_ms <= until_ms and (self.healed_ms is None or self.healed_ms >= from_ms)

    def __str__(self) -> str:
        lasted = f", {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.kind}: {self.target}{lasted}"


def schedule(
    rng: random.Random, seconds: float, every_s: float, workers: int, gateways: int
) -> list[Planned]:
    """Pure: the same arguments give the same faults."""
    plan: list[Planned] = []
    at_s = rng.expovariate(1 / every_s)
    while at_s < seconds:
        tries = (_draw(rng, at_s, workers, gateways) for _ in range(TRIES))
        fitting = next((each for each in tries if _fits(each, plan, workers, gateways)), None)
        if fitting is not None:
            plan.append(fitting)
        at_s += rng.expovariate(1 / every_s)
    return plan


def _draw(rng: random.Random, at_s: float, workers: int, gateways: int) -> Planned:
    kind = rng.choices(KINDS, [kind.weight for kind in KINDS])[0]
    index = rng.randrange({"worker": workers, "gateway": gateways}.get(kind.target, 1))
    return Planned(at_s, kind, index, round(rng.uniform(*kind.lasts_s), 1))


def _fits(new: Planned, plan: Sequence[Planned], workers: int, gateways: int) -> bool:
    busy = [old for old in plan if old.busy_until_s > new.at_s]
    if new.kind.target in ("nats", "valkey"):
        return all(old.kind.target != new.kind.target for old in busy)
    if new.kind.target == "gateway":
        same = {old.index for old in busy if old.kind.target == "gateway"}
        return new.index not in same and len(same) < gateways - 1
    if any(old.kind.target == "workers" for old in busy):
        return False
    same = {old.index for old in busy if old.kind.target == "worker"}
    if new.kind.target == "workers":
        return not same
    return new.index not in same and len(same) < workers - 1


@dataclass
class Faults:
    """Carries a plan out. ``done``: all that was injected, in order. ``stalls``: when this program did not
    run. ``bad_stops``: processes that ended badly when asked to. ``tell``: a line for whoever watches."""

    world: World
    tell: Callable[[str], None]
    done: list[Injected] = field(default_factory=list)
    stalls: list[Injected] = field(default_factory=list)
    bad_stops: list[str] = field(default_factory=list)

    async def run(self, plan: Sequence[Planned]) -> None:
        """Returns when the last fault is healed."""
        clock = asyncio.get_running_loop().time
        begun_s = clock()
        async with asyncio.TaskGroup() as group:
            for planned in plan:
                await asyncio.sleep(max(0.0, begun_s + planned.at_s - clock()))
                group.create_task(self.inject(planned), name=f"fault {planned.kind.name}")

    async def watch_self(self) -> None:
        """Never returns. While this program does not run, nothing passes its relays and no client reads."""
        while True:
            before_ms = now_ms()
            await asyncio.sleep(STALL_LOOK_S)
            late_s = (now_ms() - before_ms) / 1000 - STALL_LOOK_S
            if late_s > STALL_S:
                self.stalls.append(Injected(STALL, "checker", before_ms, late_s, now_ms()))
                self.tell(f"{STALL} for {late_s:.1f} s")

    async def inject(self, planned: Planned) -> None:
        match planned.kind.target:
            case "nats":
                async with self.world.broker_lock:
                    await self._strike(planned, "nats")
            case "valkey":
                async with self.world.cache_lock:
                    await self._strike(planned, "valkey")
            case "workers":
                for part in self.world.workers:
                    await self._strike_part(planned, part)
            case "worker":
                await self._strike_part(planned, self.world.workers[planned.index])
            case "gateway":
                await self._strike_part(planned, self.world.gateways[planned.index])

    async def _strike_part(self, planned: Planned, part: Part) -> None:
        async with part.lock:
            await self._strike(planned, part.name, part)

    async def _strike(self, planned: Planned, target: str, part: Part | None = None) -> None:
        """Noted when it hits, and again when the target serves."""
        fault = Injected(planned.kind.name, target, now_ms(), planned.lasts_s)
        if part is not None and part.role == "worker":
            fault.worker_id = await asyncio.to_thread(part.worker_id)
        fault.at_ms = now_ms()
        self.done.append(fault)
        self.tell(str(fault))
        await (
            self._on_part(planned, part) if part is not None else self._on_server(planned.kind, fault.lasts_s)
        )
        fault.healed_ms = now_ms()

    async def _on_part(self, planned: Planned, part: Part) -> None:
        match planned.kind.name.partition(" ")[2]:
            case "process killed":
                struck = part.engine()
                send(struck, signal.SIGKILL)
                await until(lambda: part.engine() not in (None, struck), HEAL_LIMIT_S)
            case "host gone" | "killed":
                part.kill_host()
                await asyncio.sleep(planned.lasts_s)
                part.start()
            case "paused":
                struck = part.engine()
                send(struck, signal.SIGSTOP)
                try:
                    await asyncio.sleep(planned.lasts_s)
                finally:
                    send(struck, signal.SIGCONT)
            case "cut off":
                await self._severed(part, part.proxy.cut, planned.lasts_s)
            case "blackholed":
                await self._severed(part, part.proxy.blackhole, planned.lasts_s)
            case "link lost":  # what it holds back never arrives
                await self._severed(part, part.proxy.blackhole, planned.lasts_s, at_last=part.proxy.cut)
            case _:  # drained; restarted in turn
                await self._drain(part)
        await part.ready(HEAL_LIMIT_S)

    async def _severed(
        self, part: Part, sever: Callable[[], None], lasts_s: float, at_last: Callable[[], None] | None = None
    ) -> None:
        sever()
        try:
            await asyncio.sleep(lasts_s)
        finally:
            if at_last is not None:
                at_last()
            part.proxy.heal()

    async def _drain(self, part: Part) -> None:
        status = await part.stop()
        if status != 0:
            self.tell(f"{part.name} ended with {status} when asked to stop")
            self.bad_stops.append(f"{part.name} ended with {status} when asked to stop")
        part.start()

    async def _on_server(self, kind: Kind, lasts_s: float) -> None:
        nats, valkey = self.world.nats, self.world.redis
        struck: dict[str, Callable[[], Awaitable[None]]] = {
            "nats killed": lambda: _restarted(nats.kill, nats.start, lasts_s),
            "nats paused": lambda: _restarted(nats.pause, nats.resume, lasts_s),
            "valkey killed": lambda: _restarted(valkey.kill, valkey.start, lasts_s),
            "valkey flushed": lambda: asyncio.to_thread(_flush, valkey.port),
        }
        await struck[kind.name]()


async def _restarted(down: Callable[[], None], up: Callable[[], None], lasts_s: float) -> None:
    await asyncio.to_thread(down)
    try:
        await asyncio.sleep(lasts_s)
    finally:
        await asyncio.to_thread(up)


def _flush(port: int) -> None:
    import redis

    with redis.Redis(port=port) as cache:
        cache.flushall()
