"""The world that the faults strike: nats-server, Valkey, gateways and workers as real processes.

Each gateway and worker reaches NATS through a relay of its own, keeps its ports over restarts, and is
started again when it ends by itself, as any supervisor would. Nothing outlives ``World``. Must not know load
nor checks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from broker import child
from schemas.config import Nats, Sim
from tests.chaos.proxy import Proxy
from tests.integration.conftest import NatsServer, RedisServer, free_port
from tests.process_tree import descendants

READY_LIMIT_S = 60.0
STOP_LIMIT_S = 25.0
RESTART_PAUSE_S = 0.3
SECRET = "a secret that all gateways share"
_SERVES = re.compile(r"\b(wk\S*) serves ")


@dataclass(frozen=True)
class Sizes:
    """How large a world, and how quick. ``relays``: each part reaches NATS through one, and can be cut off;
    they cost time. ``mutant``: see ``mutants.py``."""

    gateways: int = 2
    workers: int = 3
    slots: int = 16
    clients: int = 24
    inter_token_ms: float = 20
    mean_output_tokens: int = 120
    ack_wait_s: float = 5
    grace_s: float = 5
    worker_drain_s: float = 1
    relays: bool = True
    mutant: str = ""

    @property
    def sim(self) -> Sim:
        return Sim(
            slots=self.slots, inter_token_ms=self.inter_token_ms, mean_output_tokens=self.mean_output_tokens
        )

    @property
    def hold_s(self) -> float:
        """How often a worker looks at its lease."""
        return self.ack_wait_s / 3


def now_ms() -> float:
    return time.time() * 1000


def http_client(timeout: httpx.Timeout | float) -> httpx.AsyncClient:
    """To loopback. Without certificates, whose reading would hold up the whole program for 50 ms."""
    return httpx.AsyncClient(timeout=timeout, verify=False)


async def until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether it came true in time."""
    give_up = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > give_up:
            return False
        await asyncio.sleep(0.02)
    return True


class Part:
    """One of our processes. ``wanted``: its end would be an accident. ``lock``: held by a fault."""

    def __init__(
        self, role: str, name: str, environ: Mapping[str, str], folder: Path, proxy: Proxy, nats_port: int
    ) -> None:
        self.role = role
        self.name = name
        self.proxy = proxy
        self.log = folder / f"{name}.log"
        self.port = free_port()
        self.wanted = False
        self.lock = asyncio.Lock()
        self._environ = {**environ, f"HEADRACE_{role.upper()}__PORT": str(self.port)}
        self._environ["HEADRACE_NATS__URL"] = f"nats://127.0.0.1:{nats_port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def exited(self) -> int | None:
        """The exit status of a process that has ended; None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        self.wanted = True
        command = [sys.executable, "-I", "-S", str(child.__file__), str(os.getpid())]
        command += [sys.executable, "-m", "deploy.cli", self.role]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **self._environ}, process_group=0
            )

    def tree(self) -> list[int]:
        """Its process and all below it, parents first."""
        if self._process is None or self.exited is not None:
            return []
        return [self._process.pid, *descendants(self._process.pid)]

    def engine(self) -> int | None:
        """The process that does the work: a worker's guardian has it as a child."""
        return next(reversed(self.tree()), None)

    def worker_id(self) -> str:
        """Of the worker process that last said that it serves."""
        found = _SERVES.findall(self.log.read_text(errors="replace")) if self.log.exists() else []
        return str(found[-1]) if found else ""

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def kill_host(self) -> None:
        """All of it at once: nobody is left to tell."""
        self.wanted = False
        for pid in self.tree():
            send(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    async def stop(self, limit_s: float = STOP_LIMIT_S) -> int | None:
        """SIGTERM; its exit status, or None if it had to be killed."""
        self.wanted = False
        self.signal(signal.SIGTERM)
        if not await until(lambda: self.exited is not None, limit_s):
            self.kill_host()
            return None
        return self.exited

    async def ready(self, limit_s: float = READY_LIMIT_S) -> bool:
        path = "/readyz" if self.role == "gateway" else "/healthz"
        give_up = time.monotonic() + limit_s
        async with http_client(timeout=1) as http:
            while time.monotonic() < give_up:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(self.url + path)).status_code == 200:
                        return True
                await asyncio.sleep(0.1)
        return False


def send(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass(frozen=True)
class Accident:
    """A process that ended by itself."""

    part: str
    status: int
    at_ms: float


class World:
    """``accidents``: what ended although no fault had asked it to."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder = folder
        self.sizes = sizes
        self.nats = NatsServer(folder / "nats")
        self.redis = RedisServer(folder / "valkey")
        self.gateways: list[Part] = []
        self.workers: list[Part] = []
        self.accidents: list[Accident] = []
        self.broker_lock = asyncio.Lock()
        self.cache_lock = asyncio.Lock()

    @property
    def parts(self) -> list[Part]:
        return [*self.workers, *self.gateways]

    @property
    def urls(self) -> list[str]:
        return [gateway.url for gateway in self.gateways]

    @property
    def nats_config(self) -> Nats:
        return Nats(url=self.nats.url, ack_wait_s=self.sizes.ack_wait_s)

    async def _start(self) -> None:
        self.nats.start()
        self.redis.start()
        for number in range(self.sizes.workers):
            self.workers.append(await self._part("worker", f"worker-{number}"))
        for number in range(self.sizes.gateways):
            self.gateways.append(await self._part("gateway", f"gateway-{number}"))
        for part in self.parts:
            part.start()
        for part in self.parts:
            if not await part.ready():
                raise RuntimeError(
                    f"{part.name} did not start:\n{part.log.read_text(errors='replace')[-3000:]}"
                )

    async def _part(self, role: str, name: str) -> Part:
        proxy = Proxy(self.nats.port)
        await proxy.start()
        nats_port = proxy.port if self.sizes.relays else self.nats.port
        return Part(role, name, self._environ(), self.folder, proxy, nats_port)

    def _environ(self) -> dict[str, str]:
        sizes = self.sizes
        environ = {
            "HEADRACE_NATS__ACK_WAIT_S": sizes.ack_wait_s,
            "HEADRACE_REDIS__URL": self.redis.url,
            "HEADRACE_SECURITY__SECRET": SECRET,
            "HEADRACE_GATEWAY__DISCONNECT_GRACE_S": sizes.grace_s,
            "HEADRACE_GATEWAY__DRAIN_S": 2,
            "HEADRACE_WORKER__ENGINE": "sim",
            "HEADRACE_WORKER__DRAIN_S": sizes.worker_drain_s,
            "HEADRACE_WORKER__PRESENCE_INTERVAL_S": 1,
            "HEADRACE_SIM__SLOTS": sizes.slots,
            "HEADRACE_SIM__INTER_TOKEN_MS": sizes.inter_token_ms,
            "HEADRACE_SIM__MEAN_OUTPUT_TOKENS": sizes.mean_output_tokens,
            "HEADRACE_LOGGING__FORMAT": "json",
        }
        mutation: dict[str, str] = {}
        if sizes.mutant:
            from tests.chaos.mutants import environment

            mutation = environment(sizes.mutant)
        return {key: str(value) for key, value in environ.items()} | mutation

    async def supervise(self) -> None:
        """Never returns: what ends by itself is noted and started again."""
        while True:
            for part in self.parts:
                status = part.exited
                if part.wanted and status is not None:
                    self.accidents.append(Accident(part.name, status, now_ms()))
                    await asyncio.sleep(RESTART_PAUSE_S)
                    if part.wanted:
                        part.start()
            await asyncio.sleep(0.1)

    async def _end(self) -> None:
        for part in self.parts:
            part.kill_host()
            await part.proxy.close()
        self.nats.kill()
        self.redis.kill()

    def troubles_in_logs(self) -> list[str]:
        """Bugs that a process has told, each once: a trace, a critical line, a task that nobody owned."""
        bugs: dict[str, str] = {}
        for part in self.parts:
            for line in part.log.read_text(errors="replace").splitlines():
                if (bug := _bug(line)) is not None:
                    bugs.setdefault(bug.rstrip().rpartition("\n")[2], f"{part.name}: {bug}")
        return list(bugs.values())


def _bug(line: str) -> str | None:
    """What it says, the trace last; None for any other line."""
    if not line.startswith("{"):
        told = "Traceback (most recent call last)" in line or "never awaited" in line
        return line if told else None
    try:
        record = json.loads(line)
    except ValueError:
        return None  # cut short by a kill
    if record.get("level") != "critical" and "trace" not in record:
        return None
    return f"{record['time']} {record['message']}\n{record.get('trace', '')}"


@contextlib.asynccontextmanager
async def running(folder: Path, sizes: Sizes) -> AsyncIterator[World]:
    """A world that is ready. Its folder keeps the logs."""
    world = World(folder, sizes)
    try:
        await world._start()
        supervisor = asyncio.create_task(world.supervise(), name="supervise")
        try:
            yield world
        finally:
            supervisor.cancel()
            await asyncio.wait({supervisor})
    finally:
        await world._end()
