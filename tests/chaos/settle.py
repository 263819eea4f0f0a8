"""After the faults: everything healed and nobody asking, nothing may be left over anywhere.

No job held or waiting, no slot taken, no response or connection remembered, no consumer without its gateway;
and every slot can still be filled. Processes end when asked to, within their limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import httpx
from prometheus_client.parser import text_string_to_metric_families

from broker import subjects
from broker.connection import Broker
from tests.chaos.checks import Violation
from tests.chaos.world import Part, World, http_client

LEAK_LIMIT_S = 45.0  # a dead gateway's consumer is forgotten by the server after 30 s
LOOK_S = 0.25
WORKER_GAUGES = ("headrace_worker_requests_running", "headrace_worker_requests_waiting")
GATEWAY_GAUGES = (
    "headrace_gateway_requests_running",
    "headrace_gateway_requests_waiting",
    "headrace_gateway_connections",
)


async def leaks(world: World, broker: Broker, limit_s: float = LEAK_LIMIT_S) -> list[Violation]:
    """What is still there after ``limit_s``."""
    return await _none_left(lambda: _left_over(world, broker), limit_s)


async def _none_left(look: Callable[[], Awaitable[list[str]]], limit_s: float) -> list[Violation]:
    give_up = time.monotonic() + limit_s
    while (left := await look()) and time.monotonic() < give_up:
        await asyncio.sleep(LOOK_S)
    return [Violation("nothing is left over", what) for what in left]


async def _left_over(world: World, broker: Broker) -> list[str]:
    found: list[str] = []
    for info in await broker.js.consumers_info(subjects.JOBS):
        held = (info.num_ack_pending or 0, info.num_pending or 0)
        if held != (0, 0):
            found.append(f"{info.name}: {held[0]} jobs held, {held[1]} waiting")
    consumers = len(await broker.js.consumers_info(subjects.REPLIES))
    if consumers != len(world.gateways):
        found.append(f"{consumers} consumers on the reply logs for {len(world.gateways)} gateways")
    for part in world.parts:
        gauges = WORKER_GAUGES if part.role == "worker" else GATEWAY_GAUGES
        found += [f"{part.name}: {name} is {value:g}" for name, value in await _gauges(part, gauges) if value]
    return found


async def _gauges(part: Part, names: Sequence[str]) -> list[tuple[str, float]]:
    """Summed over models; a process that does not answer is a finding, too."""
    try:
        async with http_client(2) as http:
            text = (await http.get(f"{part.url}/metrics")).text
    except httpx.HTTPError as error:
        return [(f"/metrics answers {type(error).__name__}, which", 1)]
    sums = dict.fromkeys(names, 0.0)
    for family in text_string_to_metric_families(text):
        if family.name in sums:
            sums[family.name] += sum(sample.value for sample in family.samples)
    return list(sums.items())


async def running_responses(world: World) -> int:
    """On all workers, as their engines count."""
    found = await asyncio.gather(*(_gauges(worker, WORKER_GAUGES[:1]) for worker in world.workers))
    return int(sum(value for gauges in found for _, value in gauges))


async def stopped(world: World) -> list[Violation]:
    """Every process is asked to end, gateways first."""
    found: list[Violation] = []
    for parts in (world.gateways, world.workers):
        statuses = await asyncio.gather(*(part.stop() for part in parts))
        for part, status in zip(parts, statuses, strict=True):
            if status != 0:
                shown = "had to be killed" if status is None else f"ended with status {status}"
                found.append(Violation("processes end when asked to", f"{part.name} {shown}"))
    return found
