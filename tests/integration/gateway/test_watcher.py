"""The watcher on a real broker: whose jobs are given back, and whose are not."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator

import pytest
from nats.aio.msg import Msg
from prometheus_client import REGISTRY

from broker import jetstream, jobs, presence, subjects, topology
from broker.connection import Broker, NoAnswer
from broker.jobs import JobDelivery, JobPuller
from gateway.watcher import Watcher
from schemas import codec
from schemas.config import Nats
from schemas.ids import ResponseId, WorkerId
from schemas.reply import Started
from tests.integration.broker.samples import MODEL, make_job, until
from tests.integration.conftest import NatsServer

W, ALIVE, NOBODY = WorkerId("w-1"), WorkerId("w-alive"), WorkerId("w-nobody")
ACK_WAIT_S = 120  # what is redelivered in these tests was given back


class Queue:
    """Jobs, and what becomes of them. ``holder``: the connection that pulls them, for all workers."""

    def __init__(self, holder: Broker) -> None:
        self.holder = holder
        self.deliveries: dict[ResponseId, list[JobDelivery]] = {}
        self.nakked: list[str] = []  # heard of beside the redelivery, which may be quicker
        self.puller = JobPuller(holder, MODEL, on_job=self._on_job)

    def _on_job(self, delivery: JobDelivery) -> None:
        response = codec.decode_job(delivery.delivery.data).response
        self.deliveries.setdefault(response, []).append(delivery)

    async def watch_acks(self) -> None:
        async def on_ack(msg: Msg) -> None:
            if msg.data == b"-NAK":
                self.nakked.append(msg.subject)

        await self.holder.nc.subscribe("$JS.ACK.>", cb=on_ack)

    async def take(self, worker: WorkerId) -> tuple[ResponseId, Started]:
        """A job that this worker has pulled and begun."""
        job = make_job()
        await jobs.publish_job(self.holder, job)
        await until(lambda: job.response in self.deliveries)
        ack_subject = self.deliveries[job.response][0].ack_subject
        return job.response, Started(attempt=1, worker=worker, ack_subject=ack_subject)

    async def redelivered(self) -> int:
        consumer = subjects.job_consumer(MODEL, "interactive", "fair")
        info = await jetstream.call(self.holder, f"CONSUMER.INFO.JOBS.{consumer}", b"", dict)
        count: int = info["num_redelivered"]
        return count


@contextlib.asynccontextmanager
async def connected(nats: Nats, name: str) -> AsyncIterator[Broker]:
    broker = await Broker.connect(nats, name=name)
    try:
        yield broker
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def running(*tasks: asyncio.Task[None]) -> AsyncIterator[None]:
    try:
        yield
        assert not any(task.done() for task in tasks), tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture
async def queue(nats_server: NatsServer) -> AsyncIterator[Queue]:
    async with connected(Nats(url=nats_server.url, ack_wait_s=ACK_WAIT_S), "holder") as holder:
        await topology.apply(holder)
        queue = Queue(holder)
        queue.puller.set_free(100)
        await queue.watch_acks()
        async with running(asyncio.create_task(queue.puller.run())):
            yield queue


@pytest.fixture
async def gateway(nats_server: NatsServer) -> AsyncIterator[Broker]:
    async with connected(nats_server.config, "gateway") as broker:
        yield broker


@pytest.fixture
async def watcher(gateway: Broker) -> AsyncIterator[Watcher]:
    watcher = Watcher(gateway)
    async with running(asyncio.create_task(watcher.run())):
        yield watcher


class Pings:
    """Those that reach a worker, beside whoever answers them."""

    def __init__(self) -> None:
        self.count = 0

    async def follow(self, broker: Broker, worker: WorkerId) -> None:
        async def on_ping(msg: Msg) -> None:
            self.count += 1

        await broker.nc.subscribe(subjects.worker_ping(worker), cb=on_ping)

    async def until_more(self, n: int) -> None:
        enough = self.count + n
        await until(lambda: self.count >= enough)


def verdicts(verdict: str) -> float:
    return REGISTRY.get_sample_value("headrace_gateway_watcher_verdicts_total", {"verdict": verdict}) or 0.0


def _answer_for_ever(url: str, worker: WorkerId) -> None:
    async def main() -> None:
        broker = await Broker.connect(Nats(url=url), name=worker)
        await presence.answer_pings(broker, worker)
        await broker.closed()

    asyncio.run(main())


@contextlib.asynccontextmanager
async def worker_process(broker: Broker, worker: WorkerId) -> AsyncIterator[int]:
    """One that answers pings; its process id."""
    process = multiprocessing.get_context("spawn").Process(
        target=_answer_for_ever, args=(broker.config.url, worker), daemon=True
    )
    process.start()
    try:
        async with asyncio.timeout(20):
            while await presence.ping(broker, worker, 1) != "alive":
                await asyncio.sleep(0.02)
        assert process.pid is not None
        yield process.pid
    finally:
        process.kill()
        process.join()
        process.close()


async def test_the_jobs_of_a_closed_connection_are_given_back_once(
    queue: Queue, watcher: Watcher, nats_server: NatsServer
) -> None:
    before = verdicts("dead")
    taken = [await queue.take(W) for _ in range(3)]
    healthy, its_started = await queue.take(ALIVE)
    pings = Pings()
    await pings.follow(queue.holder, ALIVE)
    await presence.answer_pings(queue.holder, ALIVE)
    async with connected(nats_server.config, "worker") as worker:
        await presence.answer_pings(worker, W)
        await worker.request("$JS.API.INFO")  # by now the server knows of the subscription
        watcher.begun(healthy, its_started)
        for response, started in taken:
            watcher.begun(response, started)
        await pings.until_more(2)
        assert queue.nakked == []
    await until(lambda: all(len(queue.deliveries[response]) == 2 for response, _ in taken))
    for response, started in taken:
        watcher.begun(response, started)  # the same as before, read again
    response, started = await queue.take(NOBODY)
    watcher.begun(response, started)
    await until(lambda: len(queue.deliveries[response]) == 2)
    given_back = sorted(started.ack_subject for _, started in [*taken, (response, started)])
    await until(lambda: sorted(queue.nakked) == given_back)
    assert len(queue.deliveries[healthy]) == 1
    assert verdicts("dead") == before + 4


async def test_a_killed_process_is_dead(queue: Queue, watcher: Watcher, gateway: Broker) -> None:
    before = verdicts("dead")
    async with worker_process(gateway, W) as pid:
        response, started = await queue.take(W)
        watcher.begun(response, started)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(queue.deliveries[response]) == 2)
    await until(lambda: queue.nakked == [started.ack_subject])
    assert verdicts("dead") == before + 1


async def test_who_never_answers_hangs(queue: Queue, watcher: Watcher, gateway: Broker) -> None:
    """A process that is stopped, and a connection that is read and says nothing."""
    before = verdicts("hung")
    mute = WorkerId("w-mute")
    pings = Pings()
    await pings.follow(queue.holder, mute)
    await presence.answer_pings(queue.holder, ALIVE)
    async with worker_process(gateway, W) as pid:
        taken = [await queue.take(worker) for worker in (W, mute, ALIVE)]
        os.kill(pid, signal.SIGSTOP)
        for response, started in taken:
            watcher.begun(response, started)
        (stopped, _), (unheard, _), (healthy, _) = taken
        await until(lambda: len(queue.deliveries[stopped]) == len(queue.deliveries[unheard]) == 2)
    given_back = sorted(started.ack_subject for _, started in taken[:2])
    await until(lambda: sorted(queue.nakked) == given_back)
    assert len(queue.deliveries[healthy]) == 1
    assert pings.count >= 3
    assert verdicts("hung") == before + 2


async def test_who_answers_may_be_silent_for_ever(queue: Queue, watcher: Watcher) -> None:
    await presence.answer_pings(queue.holder, W)
    pings = Pings()
    await pings.follow(queue.holder, W)
    for _ in range(10):
        watcher.begun(*await queue.take(W))
    await pings.until_more(12)  # by then it would have been dead or hung
    assert queue.nakked == []
    assert await queue.redelivered() == 0


async def test_a_restart_of_the_broker_costs_no_healthy_worker_its_jobs(
    queue: Queue, watcher: Watcher, gateway: Broker, nats_server: NatsServer
) -> None:
    """The worker comes back so late that it is seen as dead meanwhile."""
    taken = [await queue.take(W) for _ in range(3)]
    pings = Pings()
    async with connected(nats_server.config, "worker") as worker:
        await presence.answer_pings(worker, W)
        await pings.follow(worker, W)
        for response, started in taken:
            watcher.begun(response, started)
        await pings.until_more(1)
        nats_server.stop()
    nats_server.start()
    await until(lambda: gateway.connected and gateway.epoch == 1)
    for _ in range(5):
        assert await presence.ping(gateway, W, 1) == "dead"
        await asyncio.sleep(0.3)
    async with connected(nats_server.config, "worker") as worker:
        await presence.answer_pings(worker, W)
        await pings.follow(worker, W)
        await pings.until_more(15)  # beyond the time without verdicts
        await until(lambda: queue.holder.connected)
        assert queue.nakked == []
        assert await queue.redelivered() == 0
    await until(lambda: all(len(queue.deliveries[response]) == 2 for response, _ in taken))  # not blind


async def test_a_broker_that_hangs_makes_no_worker_hang(
    queue: Queue, watcher: Watcher, gateway: Broker, nats_server: NatsServer
) -> None:
    await presence.answer_pings(queue.holder, W)
    pings = Pings()
    await pings.follow(queue.holder, W)
    watcher.begun(*await queue.take(W))
    await pings.until_more(1)
    nats_server.pause()
    try:
        for _ in range(3):  # longer than it takes to find a worker hung
            with pytest.raises(NoAnswer, match="timeout"):
                await gateway.request("$JS.API.INFO", timeout_s=2)
    finally:
        nats_server.resume()
    await pings.until_more(10)
    assert queue.nakked == []
    assert await queue.redelivered() == 0
