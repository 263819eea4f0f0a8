"""A gateway and a worker with the simulated engine as processes, on the servers of the fixtures."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from tests.integration.conftest import NatsServer, RedisServer, free_port

READY_LIMIT_S = 40.0
_PROGRAM = (
    "import os, sys; from broker.settings import load; from {0} import run; "
    "sys.exit(run(load(None, os.environ)))"
)


class Process:
    """One of our processes, configured by its environment, as an operator does it."""

    def __init__(self, module: str, log: Path, environ: dict[str, str]) -> None:
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(module)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environ},
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self, limit_s: float = 20) -> int:
        return self._process.wait(limit_s)

    def end(self) -> None:
        if self.running:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Gateway(Process):
    """``auth`` and ``limits``: those sections; ``extra``: variables of others; ``cache``: identical requests
    share an answer, else each is generated, as most tests want it; the rest is of [gateway]."""

    def __init__(
        self,
        nats: NatsServer,
        redis: RedisServer,
        folder: Path,
        auth: Mapping[str, object] | None = None,
        extra: Mapping[str, str] | None = None,
        limits: Mapping[str, object] | None = None,
        *,
        cache: bool = False,
        **gateway: object,
    ) -> None:
        tls = "s" if "tls_cert" in gateway else ""
        self.port = free_port()
        self.url = f"http{tls}://127.0.0.1:{self.port}"
        self.ws_url = f"ws{tls}://127.0.0.1:{self.port}"
        authentication = {f"HEADRACE_AUTH__{key.upper()}": str(value) for key, value in (auth or {}).items()}
        settings = {f"HEADRACE_GATEWAY__{key.upper()}": str(value) for key, value in gateway.items()}
        settings |= {f"HEADRACE_LIMITS__{key.upper()}": str(value) for key, value in (limits or {}).items()}
        environ = {
            "HEADRACE_NATS__URL": nats.url,
            "HEADRACE_REDIS__URL": redis.url,
            "HEADRACE_SECURITY__SECRET": "a secret of this test",
            "HEADRACE_GATEWAY__PORT": str(self.port),
            "HEADRACE_CACHE__ENABLED": str(cache).lower(),
            **settings,
            **authentication,
            **(extra or {}),
        }
        module = "deploy.gateways" if "processes" in gateway else "gateway.main"  # as the command chooses
        super().__init__(module, folder / f"gateway-{self.port}.log", environ)

    def wait_until_ready(self) -> None:
        give_up = time.monotonic() + READY_LIMIT_S
        reason = "nothing was answered"
        while time.monotonic() < give_up and self.running:
            try:
                answer = httpx.get(f"{self.url}/readyz", verify=False)
            except httpx.TransportError as error:
                reason = repr(error)
            else:
                if answer.status_code == 200:
                    return
                reason = answer.text
            time.sleep(0.05)
        raise AssertionError(f"the gateway is not ready: {reason}\n{self.output}")


def _worker(
    nats: NatsServer, redis: RedisServer, folder: Path, extra: Mapping[str, str] | None = None, **sim: object
) -> Process:
    settings = {f"HEADRACE_SIM__{key.upper()}": str(value) for key, value in sim.items()}
    environ = {
        "HEADRACE_NATS__URL": nats.url,
        "HEADRACE_REDIS__URL": redis.url,
        "HEADRACE_WORKER__ENGINE": "sim",
        "HEADRACE_WORKER__PORT": "0",
        **settings,
        **(extra or {}),
    }
    return Process("workers.guardian", folder / "worker.log", environ)


@contextlib.contextmanager
def worker(
    nats: NatsServer, redis: RedisServer, folder: Path, extra: Mapping[str, str] | None = None, **sim: object
) -> Iterator[Process]:
    """``extra``: variables of other sections than [sim]."""
    process = _worker(nats, redis, folder, extra, **sim)
    try:
        yield process
    finally:
        process.end()


@contextlib.contextmanager
def gateway(
    nats: NatsServer,
    redis: RedisServer,
    folder: Path,
    auth: Mapping[str, object] | None = None,
    extra: Mapping[str, str] | None = None,
    limits: Mapping[str, object] | None = None,
    *,
    cache: bool = False,
    **settings: object,
) -> Iterator[Gateway]:
    """Ready to answer."""
    process = Gateway(nats, redis, folder, auth, extra, limits, cache=cache, **settings)
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.end()
