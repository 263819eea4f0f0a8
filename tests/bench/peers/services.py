"""The services that are compared, each started as its makers say, on free ports of this machine.

What is not Headrace lives in an environment of its own, made at first use: what they need contradicts ours.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.layout import sim_environ, until_answers
from tests.e2e.stack import Stack
from tests.integration.conftest import free_port
from workers.engine.vllm_boot import cpu_defaults
from workers.models import resolve

ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "headrace" / "peers"
DYNAMO = ("ai-dynamo==1.6.1", "ai-dynamo-runtime==1.6.1")
DYNAMO_NEEDS = (
    "uvloop",
    "pydantic",
    "msgspec",
    "prometheus-client",
    "transformers",
    "pyzmq",
    "numpy",
    "pyyaml",
)
LITELLM = ("litellm[proxy]==1.106.0",)  # 1.82.7, 1.82.8 and 1.107.0 were compromised
MODEL = "smollm2"
REAL_SLOTS = 64
START_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Service:
    """``parts``: the processes (with all below them) by what they are."""

    name: str
    url: str
    model: str
    parts: Mapping[str, Sequence[int]]

    def cpu_s(self) -> dict[str, float]:
        """So far, by part."""
        return {part: sum(map(_cpu_s, pids)) for part, pids in self.parts.items()}


def _cpu_s(pid: int) -> float:
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in [root, *root.children(recursive=True)]]
    return float(sum(spent.user + spent.system for spent in times))


Start = Callable[[Path, "Pace"], AbstractAsyncContextManager[Service]]


@dataclass(frozen=True, slots=True)
class Pace:
    """Of the engines that only keep time. As many slots as Dynamo's mocker has by itself."""

    inter_token_ms: float
    slots: int = 256


# -- Headrace ---------------------------------------------------------------------------------------


@asynccontextmanager
async def headrace(folder: Path, pace: Pace) -> AsyncIterator[Service]:
    sim = {
        "slots": pace.slots,
        "inter_token_ms": pace.inter_token_ms,
        "prefill_base_ms": 0,
        "prefill_us_per_token": 0,
        "mean_output_tokens": 0,
    }
    async with _up(folder, "headrace-sim", engine="sim", env=sim_environ(sim)) as service:
        yield service


@asynccontextmanager
async def headrace_vllm(folder: Path, _: Pace) -> AsyncIterator[Service]:
    env = {"HEADRACE_WORKER__SLOTS": str(REAL_SLOTS)}
    async with _up(folder, resolve(MODEL).name, engine="vllm", env=env) as service:
        yield service


@asynccontextmanager
async def _up(folder: Path, model: str, *, engine: str, env: Mapping[str, str]) -> AsyncIterator[Service]:
    stack = await asyncio.to_thread(
        Stack, folder / "data", engine=engine, env=env, ready_timeout_s=START_LIMIT_S
    )
    try:
        parts = {part.kind: [part.pid] for part in stack.parts()}
        named = {"gateway": "gateway", "nats": "queue", "redis": "cache", "worker": "worker and engine"}
        yield Service("headrace", stack.url, model, {named[kind]: pids for kind, pids in parts.items()})
    finally:
        await asyncio.to_thread(stack.stop)


# -- the others -------------------------------------------------------------------------------------


@asynccontextmanager
async def engine_alone(folder: Path, pace: Pace) -> AsyncIterator[Service]:
    """No service at all: what the client itself adds."""
    port = free_port()
    argv = [sys.executable, "-m", "tests.bench.peers.paced_upstream", str(port), str(pace.inter_token_ms)]
    async with _running(argv, folder / "upstream.log") as engine:
        await until_answers(f"http://127.0.0.1:{port}/v1/models", {200})
        yield Service("engine alone", f"http://127.0.0.1:{port}", "paced", {"engine": [engine]})


@asynccontextmanager
async def litellm(folder: Path, pace: Pace) -> AsyncIterator[Service]:
    python = await asyncio.to_thread(_environment, "litellm", LITELLM, ())
    port = free_port()
    async with engine_alone(folder, pace) as upstream:
        config = folder / "litellm.yaml"
        config.write_text(
            "model_list:\n  - model_name: paced\n    litellm_params:\n      model: openai/paced\n"
            f"      api_base: {upstream.url}/v1\n      api_key: none\n"
        )
        argv = [str(python.parent / "litellm"), "--config", str(config), "--port", str(port)]
        # else it does not start
        without_key = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
        async with _running(argv, folder / "litellm.log", without_key) as router:
            await until_answers(f"http://127.0.0.1:{port}/health/liveliness", {200}, START_LIMIT_S)
            url = f"http://127.0.0.1:{port}"
            yield Service("litellm", url, "paced", {"router": [router], **upstream.parts})


def dynamo(*, nodelay: bool) -> Start:
    @asynccontextmanager
    async def start(folder: Path, pace: Pace) -> AsyncIterator[Service]:
        python = await asyncio.to_thread(_environment, "dynamo", DYNAMO, DYNAMO_NEEDS)
        model = resolve(MODEL)
        port, name = free_port(), "paced"
        env = {"DYN_FILE_KV": str(folder / "discovery"), "HF_HUB_OFFLINE": "1"}
        shared = ["--discovery-backend", "file", "--request-plane", "tcp"]
        # The mocker's token takes 17.5 ms by its own clock: this ratio makes it the pace.
        ratio = 0.00057 * 10 / pace.inter_token_ms
        mocker = [str(python), "-m", "dynamo.mocker", "--model-path", str(model.path), "--model-name", name]
        mocker += [*shared, "--speedup-ratio", "1000", "--decode-speedup-ratio", f"{ratio:g}"]
        mocker += ["--block-size", "64", "--max-num-seqs", str(pace.slots)]
        front = [str(python), "-m", "dynamo.frontend", "--http-port", str(port), *shared]
        front += ["--migration-limit", "3"]
        preload = {"LD_PRELOAD": str(_nodelay(folder))} if nodelay else {}
        async with (
            _running(front, folder / "frontend.log", env | preload) as frontend,
            _running(mocker, folder / "mocker.log", env) as engine,
        ):
            await until_answers(f"http://127.0.0.1:{port}/v1/models", {200}, START_LIMIT_S, holds=name)
            shown = "dynamo, TCP_NODELAY" if nodelay else "dynamo"
            yield Service(
                shown, f"http://127.0.0.1:{port}", name, {"frontend": [frontend], "engine": [engine]}
            )

    return start


@asynccontextmanager
async def vllm_serve(folder: Path, _: Pace) -> AsyncIterator[Service]:
    """With the settings that Headrace gives the engine."""
    model, port = resolve(MODEL), free_port()
    settings = cpu_defaults({}) | {"max_num_seqs": REAL_SLOTS}
    del settings["worker_cls"], settings["enforce_eager"]
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path)]
    argv += ["--served-model-name", model.name, "--port", str(port), "--host", "127.0.0.1", "--enforce-eager"]
    argv += [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "TORCHDYNAMO_DISABLE": "1",
    }
    async with _running(argv, folder / "serve.log", env) as server:
        await until_answers(f"http://127.0.0.1:{port}/v1/models", {200}, START_LIMIT_S)
        yield Service("vllm serve", f"http://127.0.0.1:{port}", model.name, {"server and engine": [server]})


# -- processes --------------------------------------------------------------------------------------


@asynccontextmanager
async def _running(
    argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[int]:
    """Its pid. Whatever it started ends with it: it leads a group of its own."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=out, stderr=out, env={**os.environ, **(env or {})}, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _environment(name: str, alone: Sequence[str], needs: Sequence[str]) -> Path:
    """Its Python. ``alone``: without what they ask for, where ``needs`` names what they do need."""
    folder = ENVIRONMENTS / name
    python, done = folder / "bin" / "python", folder / ".installed"
    wanted = " ".join([*alone, *needs])
    if done.exists() and done.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if needs:
        subprocess.run([*install, *needs], check=True)
    subprocess.run([*install, *(["--no-deps"] if needs else []), *alone], check=True)
    done.write_text(wanted)
    return python


def _nodelay(folder: Path) -> Path:
    library = folder / "nodelay.so"
    source = Path(__file__).with_name("nodelay.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library
