"""``headrace bench`` against a real gateway and worker with the simulated engine: every API, what is counted,
and how trouble shows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from deploy import keys
from deploy.bench import ClosedLoop, OpenLoop, Plan, Report, Snapshot, Target, Workload, measure
from deploy.bench.alarm import Alarm
from deploy.bench.distribution import Fixed, Uniform
from deploy.bench.plan import Api
from schemas.config import Config
from schemas.quota import OwnQuota
from tests.integration.conftest import NatsServer, RedisServer, free_port
from tests.integration.gateway.processes import Gateway, Process, gateway, worker

APIS: tuple[Api, ...] = ("responses-ws", "responses", "chat", "completions")
MODEL = "headrace-sim"
SHORT = Workload(prompt_tokens=Fixed(12), output_tokens=Uniform(5, 15))


@pytest.fixture(scope="module")
def sim_worker(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("worker")
    with worker(shared_nats_server, shared_redis_server, folder, inter_token_ms=5, slots=64) as running:
        yield running


@pytest.fixture(scope="module")
def served(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    sim_worker: Process,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    with gateway(shared_nats_server, shared_redis_server, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def plan(url: str, api: Api, **options: Any) -> Plan:
    target = Target(api=api, urls=(url,), model=options.pop("model", MODEL))
    return Plan(target=target, **{"load": ClosedLoop(3), "workload": SHORT, "conversations": 9, **options})


@pytest.mark.parametrize("api", APIS)
async def test_every_response_is_counted_to_the_token(served: Gateway, api: Api) -> None:
    seen: list[Snapshot] = []
    step = await measure(plan(served.url, api, processes=2), watch=seen.append)
    assert step.responses.due == step.responses.completed == 9
    assert step.reasons == {}
    assert step.tokens.counted_by == "usage"
    assert step.tokens.output == step.tokens.asked
    assert 9 * 5 <= step.tokens.output <= 9 * 15
    assert step.tokens.prompt >= 9 * 12
    assert step.ttft_ms.count == step.e2e_ms.count == step.tpot_ms.count == 9
    assert step.gap_ms.count >= 9  # merged or not, more than one arrival each
    assert step.ttft_ms.min > 0
    assert step.ttft_ms.max <= step.e2e_ms.max
    assert len(step.client.cpu) == 2
    assert step.client.connections == 3  # warm ones, used again
    assert sum(point.completed for point in step.series) == 9
    assert step.series[-1].in_flight == 0
    assert sum(point.tokens_per_s for point in step.series) == pytest.approx(step.tokens.output, abs=1)
    assert seen


@pytest.mark.parametrize("api", ["responses-ws", "chat"])
async def test_an_open_loop_sends_what_is_due(served: Gateway, api: Api) -> None:
    load = OpenLoop(40, "constant")
    step = await measure(plan(served.url, api, load=load, conversations=0, duration_s=1, warmup_s=0))
    assert step.responses.due == step.responses.completed == 40
    assert step.tokens.output == step.tokens.asked


@pytest.mark.parametrize(
    ("api", "memory"),
    [*((api, "previous") for api in APIS), ("responses-ws", "conversation")],
)
async def test_later_turns_know_the_earlier_ones(served: Gateway, api: Api, memory: str) -> None:
    workload = Workload(prompt_tokens=Fixed(30), output_tokens=Fixed(10), turns=Fixed(3), think_s=Fixed(0.01))
    asked = plan(served.url, api, workload=workload, conversations=4)
    target = msgspec.convert({**msgspec.to_builtins(asked.target), "memory": memory}, Target)
    step = await measure(msgspec.structs.replace(asked, target=target))
    assert step.responses.due == step.responses.completed == 12
    assert step.tokens.output == 120
    alone = 30 * 12  # what the prompts would be without any memory
    assert step.tokens.prompt > alone + 4 * (40 + 80)


async def test_refusals_are_counted_by_their_code(served: Gateway) -> None:
    step = await measure(plan(served.url, "responses-ws", model="nobody", conversations=2))
    assert step.responses.refused == step.responses.due == 2
    assert step.reasons == {"404 model_not_found": 2}
    step = await measure(plan(served.url, "chat", model="nobody", conversations=2))
    assert step.reasons == {"404 model_not_found": 2}


async def test_nobody_there_is_told_so() -> None:
    step = await measure(plan(f"http://127.0.0.1:{free_port()}", "chat", conversations=2))
    assert step.responses.unreachable == step.responses.due == 2
    assert step.reasons == {"ECONNREFUSED": 2}


@asynccontextmanager
async def ended(task: asyncio.Task[Any]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.parametrize("api", ["responses-ws", "chat"])
async def test_a_killed_server_shows_as_broken_streams(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    sim_worker: Process,
    tmp_path: Path,
    api: Api,
) -> None:
    streaming = asyncio.Event()

    def watch(snapshot: Snapshot) -> None:
        if snapshot.in_flight == 3 and snapshot.window.deltas:
            streaming.set()

    with gateway(shared_nats_server, shared_redis_server, tmp_path) as doomed:
        workload = Workload(output_tokens=Fixed(4000))  # 20 s, were it not for what follows
        asked = plan(doomed.url, api, workload=workload, conversations=3)
        measuring = asyncio.create_task(measure(asked, watch=watch), name="measure")
        async with ended(measuring):
            async with asyncio.timeout(30):
                await streaming.wait()
            doomed.kill()
            step = await measuring
    assert step.responses.broken == step.responses.due == 3
    assert step.ttft_ms.count == 3
    assert step.e2e_ms.count == 0
    assert sum(step.reasons.values()) == 3


async def test_an_answer_that_takes_too_long_is_timed_out(served: Gateway) -> None:
    workload = Workload(output_tokens=Fixed(4000))
    asked = plan(served.url, "chat", workload=workload, conversations=2, load=ClosedLoop(2), timeout_s=0.5)
    step = await measure(asked)
    assert step.responses.timed_out == step.responses.due == 2
    assert step.reasons == {"no end within 0.5 s": 2}


async def test_what_is_under_way_when_the_grace_is_over_is_unfinished(served: Gateway) -> None:
    workload = Workload(output_tokens=Fixed(4000))
    asked = plan(
        served.url, "responses-ws", workload=workload, conversations=0, duration_s=1, warmup_s=0, grace_s=0
    )
    step = await measure(asked)
    assert step.responses.unfinished == step.responses.due == 3
    assert step.throughput.tokens_per_s > 0


async def test_an_alarm_rings_at_its_times_and_not_before() -> None:
    with Alarm() as alarm:
        begun_s = time.monotonic()
        rung: list[float] = []

        async def wait(delay_s: float) -> None:
            await alarm.until(begun_s + delay_s)
            assert time.monotonic() >= begun_s + delay_s
            rung.append(delay_s)

        given_up = asyncio.create_task(wait(0.005))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(*(wait(delay_s) for delay_s in (0.03, 0.01, 0.02, -1.0)))
        assert rung == [-1.0, 0.01, 0.02, 0.03]


def bench(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli", "bench", *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **environ},
    )


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.charts = 0
        self.fetched: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.charts += tag == "svg"
        self.fetched += [value for name, value in attrs if name in ("src", "href")]


def test_a_ramp_by_the_command(served: Gateway, tmp_path: Path) -> None:
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    words = ["--concurrency", "1,2,4", "--conversations", "8", "--output-tokens", "uniform:4-12"]
    done = bench(served.url, *words, "--seed", "5", "--json", str(report), "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "1 at once" in done.stdout
    assert "knee" in done.stdout
    written = json.loads(report.read_text())
    jsonschema.validate(written, msgspec.json.schema(Report))
    assert [step["load"]["concurrency"] for step in written["steps"]] == [1, 2, 4]
    assert [step["responses"]["completed"] for step in written["steps"]] == [8, 8, 8]
    assert (
        len({step["tokens"]["output"] for step in written["steps"]}) == 1
    )  # the same seed, the same lengths
    assert written["plan"]["target"]["model"] == MODEL  # asked of the server
    assert written["plan"]["seed"] == 5
    assert written["command"][:3] == ["headrace", "bench", served.url]
    shown = Page()
    shown.feed(page.read_text())
    assert shown.charts >= 3
    assert shown.fetched == []


def test_the_key_is_sent_and_shown_nowhere(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    sim_worker: Process,
    tmp_path: Path,
) -> None:
    config = Config(nats=shared_nats_server.config)
    _, key = keys.create(config, "acme", name="", quota=OwnQuota(), lives_s=None)
    auth = {"methods": "keys"}
    with gateway(shared_nats_server, shared_redis_server, tmp_path, auth) as guarded:
        words = [guarded.url, "--model", MODEL, "--conversations", "2", "--output-tokens", "5"]
        report = tmp_path / "report.json"
        done = bench(*words, "--json", str(report), HEADRACE_API_KEY=key)
        assert done.returncode == 0, done.stderr
        assert key not in done.stdout + done.stderr + report.read_text()
        done = bench(*words, HEADRACE_API_KEY="")
        assert done.returncode == 1  # nothing was completed
        assert "401 invalid_api_key" in done.stdout


def test_ctrl_c_shows_what_there_is(served: Gateway) -> None:
    words = [served.url, "--model", MODEL, "--duration", "600", "--warmup", "0", "--output-tokens", "10"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy.cli", "bench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "in flight" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "completed;" in out
