"""The parts of an installation as benchmarks lay them out: real servers, and our processes as an operator
starts them. Nothing outlives the ``AsyncExitStack`` that it was started on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from tests.integration.conftest import NatsServer, RedisServer, free_port
from tests.integration.gateway.processes import Process

READY_LIMIT_S = 40.0


async def servers(stack: AsyncExitStack, folder: Path) -> tuple[NatsServer, RedisServer]:
    nats, redis = NatsServer(folder / "nats"), RedisServer(folder / "redis")
    for server in (nats, redis):
        await asyncio.to_thread(server.start)
        stack.callback(server.stop)
    return nats, redis


async def sim_worker(
    stack: AsyncExitStack,
    folder: Path,
    nats: NatsServer,
    sim: Mapping[str, object],
    extra: Mapping[str, str] | None = None,
) -> Process:
    """``sim``: keys of the section of the same name; ``extra``: other variables."""
    environ = {
        "HEADRACE_NATS__URL": nats.url,
        "HEADRACE_WORKER__ENGINE": "sim",
        "HEADRACE_WORKER__PORT": "0",
        **sim_environ(sim),
        **(extra or {}),
    }
    worker = Process("workers.guardian", folder / "worker.log", environ)
    stack.push_async_callback(asyncio.to_thread, worker.end)
    return worker


def sim_environ(sim: Mapping[str, object]) -> dict[str, str]:
    """Each token has text of its own unless ``sim`` says otherwise: what is timed is text, and a character of
    several tokens would look like a gap."""
    told = {"split_characters": False, **sim}
    return {f"HEADRACE_SIM__{name.upper()}": str(value) for name, value in told.items()}


async def gateway(
    stack: AsyncExitStack,
    folder: Path,
    nats_url: str,
    redis_url: str,
    extra: Mapping[str, str] | None = None,
) -> tuple[Process, int]:
    """Ready to answer, on the port."""
    port = free_port()
    environ = {
        "HEADRACE_NATS__URL": nats_url,
        "HEADRACE_REDIS__URL": redis_url,
        "HEADRACE_SECURITY__SECRET": "a secret of this benchmark",
        "HEADRACE_GATEWAY__PORT": str(port),
        **(extra or {}),
    }
    process = Process("gateway.main", folder / "gateway.log", environ)
    stack.push_async_callback(asyncio.to_thread, process.end)
    await until_answers(f"http://127.0.0.1:{port}/readyz", {200})
    return process, port


async def until_answers(
    url: str, statuses: set[int], limit_s: float = READY_LIMIT_S, *, holds: str = ""
) -> None:
    """``holds``: what the answer must say, too. Raises ``TimeoutError``."""
    give_up_s = time.monotonic() + limit_s
    async with httpx.AsyncClient(verify=False) as http:
        while time.monotonic() < give_up_s:
            try:
                answer = await http.get(url)
                if answer.status_code in statuses and holds in answer.text:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise TimeoutError(f"{url} does not answer")
