"""``headrace up``: everything on this machine, each part its own process under one supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from broker import settings
from broker.child_process import ChildProcess
from deploy.datadir import DataDir, RunFile, RunningPart
from deploy.parts import (
    LOOPBACK,
    Part,
    gateway_part,
    headrace_argv,
    nats_part,
    reachable_host,
    redis_part,
    worker_part,
)
from deploy.ports import Ports
from deploy.progress import Progress
from deploy.supervisor import Supervisor
from schemas.config import Config

_STOP_ORDER = (("gateway", "worker"), ("redis",), ("nats",))  # a draining worker still writes to the broker


class EngineMissing(Exception):
    """The engine that was asked for is not installed."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """None, and no models: as configured. ``workers``: of each model."""

    engine: str | None
    models: tuple[str, ...]
    port: int | None
    workers: int
    gateways: int
    data_dir: Path
    config_file: Path | None


@dataclass(frozen=True, slots=True)
class Plan:
    """``environ``: what all parts are given over the environment of this process."""

    config: Config
    environ: Mapping[str, str]
    url: str
    stages: tuple[tuple[Part, ...], ...]
    models: tuple[str, ...]


def make_plan(options: UpOptions, data_dir: DataDir) -> Plan:
    """Chooses the ports and writes the servers' configuration into the data dir. Raises
    ``settings.ConfigError``, ``PortTaken``, ``ProgramMissing``, ``EngineMissing``, ``OSError``."""
    environ = _overrides(options)
    config = settings.load(options.config_file, {**os.environ, **environ})
    if config.worker.engine == "vllm" and find_spec("vllm") is None:
        raise EngineMissing("vLLM is not installed: run `make install`, or take --engine sim")
    if not config.security.secret:
        environ["HEADRACE_SECURITY__SECRET"] = data_dir.secret()
    ports = _choose_ports(config, options)
    environ |= {
        "HEADRACE_NATS__URL": f"nats://{LOOPBACK}:{ports.nats}",
        "HEADRACE_REDIS__URL": f"redis://{LOOPBACK}:{ports.redis}/0",
    }
    servers = (nats_part(config, data_dir.path, ports.nats), redis_part(data_dir.path, ports.redis))
    workers = [
        worker_part(config, n, port, {**environ, **model})
        for n, (port, model) in enumerate(zip(ports.workers, _models(options), strict=True), start=1)
    ]
    gateways = [gateway_part(config, n, port, environ) for n, port in enumerate(ports.gateways, start=1)]
    scheme = "https" if config.gateway.tls_cert else "http"
    url = f"{scheme}://{reachable_host(config.gateway.host)}:{ports.gateways[0]}"
    models = tuple(dict.fromkeys(options.models)) or (config.worker.model,)
    return Plan(config, environ, url, (servers, (*workers, *gateways)), models)


@dataclass(frozen=True, slots=True)
class _ChosenPorts:
    nats: int
    redis: int
    workers: list[int]
    gateways: list[int]


def _choose_ports(config: Config, options: UpOptions) -> _ChosenPorts:
    """The usual ports where they are free, so that the nats command and others find them. Where the
    gateway's may be any, so may all: then nothing collides with another one running."""
    ports = Ports()
    host, first = config.gateway.host, config.gateway.port
    if first == 0:
        gateways = [ports.at_or_above(host, 0) for _ in range(options.gateways)]
        nats, redis, above = 0, 0, 0
    else:
        gateways = [ports.exactly(host, first)]
        gateways += [ports.at_or_above(host, first + n) for n in range(1, options.gateways)]
        nats, redis, above = 4222, 6379, max(config.worker.port, max(gateways) + 1)
    return _ChosenPorts(
        nats=ports.at_or_above(LOOPBACK, nats),
        redis=ports.at_or_above(LOOPBACK, redis),
        workers=[ports.at_or_above(LOOPBACK, above) for _ in _models(options)],
        gateways=gateways,
    )


def _models(options: UpOptions) -> list[dict[str, str]]:
    """Each worker's model, as variables; nothing where it is as configured."""
    one_each = [{"HEADRACE_WORKER__MODEL": name, "HEADRACE_SIM__NAME": name} for name in options.models]
    return (one_each or [{}]) * options.workers


def _overrides(options: UpOptions) -> dict[str, str]:
    """The options as variables, and no traces of another broker than the one started here."""
    environ = {
        "HEADRACE_NATS__CREDENTIALS": "",
        "HEADRACE_NATS__USER": "",
        "HEADRACE_NATS__PASSWORD": "",
        "HEADRACE_NATS__REPLICAS": "1",
    }
    if options.config_file is not None:
        environ["HEADRACE_CONFIG"] = str(options.config_file.absolute())
    if options.engine is not None:
        environ["HEADRACE_WORKER__ENGINE"] = options.engine
    if options.port is not None:
        environ["HEADRACE_GATEWAY__PORT"] = str(options.port)
    return environ


def run(options: UpOptions) -> int:
    """Blocks until stopped; the exit code. Raises what ``make_plan`` does, and ``DataDirBusy``."""
    data_dir = DataDir(options.data_dir)
    with data_dir.locked():
        plan = make_plan(options, data_dir)
        data_dir.rotate_logs()
        try:
            return asyncio.run(_Up(plan, data_dir, Console()).run())
        finally:
            data_dir.remove_run_file()


class _Up:
    def __init__(self, plan: Plan, data_dir: DataDir, console: Console) -> None:
        self._plan = plan
        self._data_dir = data_dir
        self._progress = Progress(console)
        self._written: RunFile | None = None
        self._table = ExitStack()  # open while parts start
        self._fetching: ChildProcess | None = None
        self._supervisor = Supervisor(plan.stages, data_dir.log_file, self._progress, self._observe)
        self._stop_asked = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup means it
                loop.add_signal_handler(signum, self._ask_to_stop)
        if self._plan.config.worker.engine == "vllm":
            status = await self._fetch_models()
            if status != 0 or self._stop_asked:
                return 0 if self._stop_asked else status
        with self._table:
            self._table.enter_context(self._progress.table(self._supervisor.keepers))
            started = await self._supervisor.run(_STOP_ORDER)
        if not started:
            self._progress.line(f"headrace: not started; logs are in {self._data_dir.path / 'logs'}")
            return 1
        self._progress.line("Everything has stopped.")
        return 0

    async def _fetch_models(self) -> int:
        """In a process of its own: the supervisor never loads an engine. Its exit code."""
        for model in self._plan.models:
            argv = headrace_argv("model", "fetch", model)
            self._fetching = await ChildProcess.start(argv, self._plan.environ, None)
            try:
                status = await self._fetching.wait()
            finally:
                self._fetching = None
            if status != 0 or self._stop_asked:
                return status
        return 0

    def _ask_to_stop(self) -> None:
        self._stop_asked = True
        if self._fetching is not None:
            self._fetching.terminate()
            return
        self._supervisor.ask_to_stop()
        self._table.close()

    def _observe(self, supervisor: Supervisor) -> None:
        if not supervisor.settled:
            return
        parts = tuple(RunningPart(k.part.kind, k.part.id, k.pid, k.part.port) for k in supervisor.keepers)
        run = RunFile(self._plan.url, parts)
        if run == self._written:
            return
        try:
            self._data_dir.write_run_file(run)
        except OSError as error:  # such as a full disk: what runs is worth more than the note of it
            self._progress.line(f"run.json could not be written, and everything goes on: {error}")
        if self._written is None:
            self._table.close()
            self._greet()
        self._written = run

    def _greet(self) -> None:
        url = self._plan.url
        option = "" if url == "http://127.0.0.1:8080" else f" --url {url}"
        self._progress.line(
            f"\nHeadrace is up: {url}\n"
            f"Open it in a browser, or chat here with `headrace chat{option}`. Ctrl-C stops everything."
        )
