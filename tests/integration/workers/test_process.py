"""Worker processes under real signals: what dies, drains or hangs, and who goes on."""

from __future__ import annotations

import signal
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from broker.connection import Broker
from schemas.reply import Handoff, Started
from tests.integration.conftest import NatsServer
from tests.integration.workers.farm import client, in_process, make_config, subprocess_worker, until


async def test_sigterm_hands_over_and_another_goes_on_exactly(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, slots=8, inter_token_ms=5, drain_s=0.3)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as leaving:
            await leaving.until_health(200, "ready")
            all_jobs = [tester.job([n], max_tokens=1000, ignore_eos=True) for n in range(4)]
            short = tester.job(max_tokens=10, ignore_eos=True)
            await tester.submit(*all_jobs)
            await until(lambda: all(tester.tokens_of(job) > 20 for job in all_jobs))
            await tester.submit(short)
            await until(lambda: tester.tokens_of(short) > 0)
            async with in_process(config):
                leaving.signal(signal.SIGTERM)
                assert await leaving.until_exit() == 0, leaving.output.read_text()
                await tester.until_ended(short, *all_jobs)
                await tester.until_all_acked()
        await tester.check(short, *all_jobs)
        assert tester.logs[short.response].attempts == 1  # finished in the time the drain gave it
        for job in all_jobs:
            fences = [
                message for message in tester.messages[job.response] if isinstance(message, Started | Handoff)
            ]
            assert [type(fence) for fence in fences] == [Started, Handoff, Started]
            assert tester.logs[job.response].fences == 1  # being handed over is no failed attempt
        assert await tester.workers() == []


async def test_drain_gives_running_responses_their_time(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, inter_token_ms=5)
    async with client(broker, config, tmp_path) as tester, in_process(config) as running:
        job = tester.job(max_tokens=100, ignore_eos=True)
        await tester.submit(job)
        await until(lambda: tester.tokens_of(job) > 5)
        running.shutdown.requested.set()
        await until(lambda: running.worker.health == (False, "draining"))
        waiting = tester.job()
        await tester.submit(waiting)
        await running.task
        await tester.check(job)
        assert tester.tokens_of(waiting) == 0
        assert waiting.response not in tester.logs
        async with in_process(config):
            await tester.until_ended(waiting)
        await tester.check(waiting)


async def test_a_host_that_is_gone_and_another_goes_on_exactly(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, slots=8, inter_token_ms=5, ack_wait_s=1)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as dying:
            await dying.until_health(200, "ready")
            all_jobs = await tester.streams(6, 800)
            dying.signal(signal.SIGKILL)  # the guardian, and with it its worker: only ack_wait is left
            await dying.until_exit()
        async with in_process(config):
            await tester.until_ended(*all_jobs)
            await tester.until_all_acked()
        await tester.check(*all_jobs)
        assert {tester.logs[job.response].attempts for job in all_jobs} == {2}


async def test_a_frozen_worker_that_wakes_up_spoils_nothing(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, inter_token_ms=5, ack_wait_s=1)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as frozen:
            await frozen.until_health(200, "ready")
            job = tester.job(max_tokens=400, ignore_eos=True)
            await tester.submit(job)
            await until(lambda: tester.tokens_of(job) > 20)
            frozen.signal_worker(signal.SIGSTOP)
            async with in_process(config):
                await until(lambda: tester.logs[job.response].attempts == 2)
                frozen.signal_worker(signal.SIGCONT)
                await tester.until_ended(job)
                await tester.until_all_acked()
            await tester.check(job)
            frozen.signal(signal.SIGTERM)
            assert await frozen.until_exit() == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [({"crash_after_tokens": 40}, "simulated engine crashed"), ({"hang_after_tokens": 40}, "engine hangs")],
)
async def test_engine_failure_ends_the_process_and_frees_the_jobs_at_once(
    broker: Broker, nats_server: NatsServer, tmp_path: Path, fault: dict[str, int], message: str
) -> None:
    broken = make_config(nats_server.config, hang_s=0.5, ack_wait_s=3600, **fault)  # only a nak frees them
    config = make_config(nats_server.config, ack_wait_s=3600)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(broken, tmp_path) as dying:
            await dying.until_health(200, "ready")
            first_pid = dying.worker_pid
            all_jobs = [tester.job([n], max_tokens=100, ignore_eos=True) for n in range(2)]
            await tester.submit(*all_jobs)
            await until(lambda: dying.worker_pid not in (0, first_pid))
            async with in_process(config):
                await tester.until_ended(*all_jobs)
            output = dying.output.read_text()
        assert [line for line in output.splitlines() if "ERROR" in line and message in line]
        assert "Traceback" not in output
        await tester.check(*all_jobs)


async def test_crash_at_start(broker: Broker, nats_server: NatsServer, tmp_path: Path) -> None:
    config = make_config(nats_server.config, start_fault="crash")
    with subprocess_worker(config, tmp_path) as dying:
        assert await dying.until_exit() == 1
        assert "EngineDead: the simulated engine crashed at start" in dying.output.read_text()


async def test_health_says_starting_and_sigterm_works_then(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, start_fault="hang")
    with subprocess_worker(config, tmp_path) as starting:
        await starting.until_health(503, "starting")
        starting.signal(signal.SIGTERM)
        assert await starting.until_exit(limit_s=5) == 0


async def test_metrics(broker: Broker, nats_server: NatsServer, tmp_path: Path) -> None:
    config = make_config(nats_server.config, slots=3, inter_token_ms=1)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as worker:
            await worker.until_health(200, "ready")
            job = tester.job((1, 2, 3), max_tokens=40, ignore_eos=True)
            await tester.submit(job)
            await tester.until_ended(job)
            await tester.until_all_acked()
            async with httpx.AsyncClient() as http:
                text = (await http.get(f"http://127.0.0.1:{worker.port}/metrics")).text
    label = f'{{model="{config.sim.name}"}}'
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values[f"headrace_worker_slots{label}"] == "3.0"
    assert values[f"headrace_worker_prompt_tokens_total{label}"] == "3.0"
    assert values[f"headrace_worker_completion_tokens_total{label}"] == "40.0"
    assert values[f"headrace_worker_time_to_first_token_seconds_count{label}"] == "1.0"
    assert float(values[f"headrace_worker_inter_token_latency_seconds_count{label}"]) <= 39.0
    assert values[f"headrace_worker_queue_wait_seconds_count{label}"] == "1.0"
    assert (
        values[f'headrace_worker_requests_total{{model="{config.sim.name}",outcome="incomplete"}}'] == "1.0"
    )
    assert values[f"headrace_worker_requests_running{label}"] == "0.0"
    assert values["headrace_worker_ready"] == "1.0"
    assert values[f"headrace_worker_slots_used{label}"] == "0.0"
    assert float(values[f"headrace_worker_engine_steps_total{label}"]) == 40.0
    assert float(values[f"headrace_worker_engine_start_seconds{label}"]) > 0
    assert values[f"headrace_worker_unsent_tokens{label}"] == "0.0"
    assert values[f"headrace_worker_unconfirmed_tokens{label}"] == "0.0"
    assert values["headrace_worker_restarts_total"] == "0.0"
    assert values[f'headrace_build_info{{part="worker",version="{version("headrace")}"}}'] == "1.0"
    assert values["headrace_broker_connected"] == "1.0"
    assert float(values['headrace_broker_messages_total{direction="out"}']) >= 40
    assert float(values["process_start_time_seconds"]) > 0
    assert not [name for name in values if name.startswith("headrace_gateway_")]


async def test_a_restart_and_what_it_cost_are_counted(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, inter_token_ms=5)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as worker:
            await worker.until_health(200, "ready")
            killed_pid = worker.worker_pid
            (job,) = await tester.streams(1, 300)
            worker.signal_worker(signal.SIGKILL)
            await until(lambda: worker.worker_pid not in (0, killed_pid))
            await tester.until_ended(job)
            await tester.until_all_acked()
            async with httpx.AsyncClient() as http:
                text = (await http.get(f"http://127.0.0.1:{worker.port}/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = f'{{model="{config.sim.name}"}}'
    assert values["headrace_worker_restarts_total"] == "1.0"
    assert float(values[f"headrace_worker_continued_tokens_total{label}"]) > 0
    assert values[f"headrace_worker_jobs_redelivered_total{label}"] == "1.0"
