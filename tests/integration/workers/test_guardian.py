"""The guardian over its worker process, with real signals: what dies, hangs or will not start."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from broker.connection import Broker
from schemas.reply import Finished
from tests.integration.conftest import NatsServer
from tests.integration.workers.farm import (
    Subprocess,
    client,
    in_process,
    make_config,
    subprocess_worker,
    until,
)
from tests.process_tree import is_running

NEVER_S = 3600  # an ack_wait that no test waits for


def arguments(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def until_restarted(worker: Subprocess, old_pid: int) -> None:
    await until(lambda: worker.worker_pid not in (0, old_pid))
    await worker.until_health(200, "ready")


async def test_jobs_of_a_killed_worker_go_on_elsewhere_at_once(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, inter_token_ms=5, ack_wait_s=NEVER_S)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as dying:
            await dying.until_health(200, "ready")
            all_jobs = await tester.streams(6, 600)
            async with in_process(config):
                killed = dying.worker_pid
                dying.signal_worker(signal.SIGKILL)
                await tester.until_ended(*all_jobs)
                await tester.until_all_acked()
            await until_restarted(dying, killed)
            assert "guardian" in dying.output.read_text()
            after = tester.job()
            await tester.submit(after)
            await tester.until_ended(after)
            await tester.check(after, *all_jobs)
            assert {tester.logs[job.response].attempts for job in all_jobs} == {2}
            (card,) = await tester.workers()  # the killed one's was withdrawn
            assert card.pid == dying.worker_pid


async def test_a_lone_worker_takes_up_its_own_jobs_again_and_again(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, inter_token_ms=5, ack_wait_s=NEVER_S)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as dying:
            await dying.until_health(200, "ready")
            all_jobs = await tester.streams(3, 500)
            for _ in range(2):
                before, killed = [tester.tokens_of(job) for job in all_jobs], dying.worker_pid
                dying.signal_worker(signal.SIGKILL)
                await until_restarted(dying, killed)
                await until(
                    lambda before=before: all(  # type: ignore[misc]
                        tester.tokens_of(job) > count + 20
                        for job, count in zip(all_jobs, before, strict=True)
                    )
                )
            await tester.until_ended(*all_jobs)
            await tester.until_all_acked()
        await tester.check(*all_jobs)
        assert {tester.logs[job.response].attempts for job in all_jobs} == {3}


async def test_a_killed_guardian_takes_its_worker_along(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    nats = msgspec.structs.replace(nats_server.config, user="worker", password="told-nobody")
    with subprocess_worker(make_config(nats), tmp_path) as worker:
        await worker.until_health(200, "ready")
        pid = worker.worker_pid
        assert b"workers" in arguments(pid)
        assert b"told-nobody" not in arguments(pid)
        worker.signal(signal.SIGKILL)
        await until(lambda: not is_running(pid))


async def test_a_worker_process_that_hangs_is_replaced(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, inter_token_ms=5, ack_wait_s=NEVER_S, hang_s=2)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as hanging:
            await hanging.until_health(200, "ready")
            (job,) = await tester.streams(1, 300)
            hung = hanging.worker_pid
            hanging.signal_worker(signal.SIGSTOP)
            await until_restarted(hanging, hung)
            assert not is_running(hung)
            assert "silent for 2 s" in hanging.output.read_text()
            after = tester.job()
            await tester.submit(after)
            await tester.until_ended(after)
            await tester.check(after)
            assert tester.logs[job.response].attempts == 1  # its watcher has given it back long ago


async def test_a_guardian_that_was_stopped_blames_nobody(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, inter_token_ms=5, hang_s=2)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as worker:
            await worker.until_health(200, "ready")
            pid = worker.worker_pid
            worker.signal(signal.SIGSTOP)
            (job,) = await tester.streams(1, 600)  # 3 s
            await tester.until_ended(job)
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGTERM)
            assert await worker.until_exit() == 0, worker.output.read_text()
            assert worker.output.read_text().count("serves") == 1
            assert not is_running(pid)


async def test_the_second_signal_ends_a_long_drain(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, inter_token_ms=5, drain_s=NEVER_S, ack_wait_s=NEVER_S)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as leaving:
            await leaving.until_health(200, "ready")
            (job,) = await tester.streams(1, 1000)
            leaving.signal(signal.SIGTERM)
            await leaving.until_health(503, "draining")
            leaving.signal(signal.SIGTERM)
            assert await leaving.until_exit() == 128 + signal.SIGKILL
        async with in_process(config):  # what it had was given back all the same
            await tester.until_ended(job)
        await tester.check(job)


async def test_a_worker_killed_before_it_was_ready_is_not_started_again(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    with subprocess_worker(make_config(nats_server.config, start_fault="hang"), tmp_path) as starting:
        await starting.until_health(503, "starting")
        starting.signal_worker(signal.SIGKILL)
        assert await starting.until_exit() == 128 + signal.SIGKILL
        assert "was killed by SIGKILL" in starting.output.read_text()


async def test_stops_without_a_broker(nats_server: NatsServer, tmp_path: Path) -> None:
    config = make_config(nats_server.config)
    nats_server.kill()
    with subprocess_worker(config, tmp_path) as starting:
        await starting.until_health(503, "starting")
        starting.signal(signal.SIGTERM)
        assert await starting.until_exit() == 0


async def test_jobs_are_given_back_as_soon_as_the_broker_is_back(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, inter_token_ms=5, ack_wait_s=NEVER_S)
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as dying:
            await dying.until_health(200, "ready")
            all_jobs = await tester.streams(3, 800)
            nats_server.kill()
            killed = dying.worker_pid
            dying.signal_worker(signal.SIGKILL)
            await until(lambda: dying.worker_pid not in (0, killed))
            nats_server.start()
            await tester.until_ended(*all_jobs)
            await tester.until_all_acked()
        for job in all_jobs:  # read anew: the restart cost this test's own tail its consumer
            reader = await tester.log(job).read()
            assert reader.end is not None
            assert isinstance(reader.end.message, Finished)
        await tester.check(*all_jobs)


def test_the_guardian_loads_no_engine() -> None:
    """Nor what an engine needs: it stays small, and nothing of it can take the guardian along."""

    code = (
        "import sys, workers.guardian, workers.give_back; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'vllm', 'transformers', 'tokenizers') or m.startswith('workers.engine')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
