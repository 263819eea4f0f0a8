"""The job queue against a real server."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter

import msgspec
import pytest

from broker import jetstream, jobs, subjects, topology
from broker.connection import Broker
from broker.jobs import JobDelivery, JobPuller
from schemas import codec
from schemas.errors import HeadraceError
from schemas.job import DeadLetter, Job
from tests.integration.broker.samples import MODEL, make_job, until
from tests.integration.conftest import NatsServer


class Taker:
    """A worker that keeps what it is given."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.held: list[JobDelivery] = []
        self.taken: list[str] = []
        self.most_held = 0
        self.puller = JobPuller(broker, MODEL, on_job=self.take)

    def take(self, job: JobDelivery) -> None:
        self.held.append(job)
        self.taken.append(codec.decode_job(job.delivery.data).response)
        self.most_held = max(self.most_held, len(self.held))

    async def finish_one(self) -> None:
        await self.held.pop(0).ack()
        self.puller.release()


async def unacked(broker: Broker) -> int:
    count = 0
    for priority, lane in topology.QUEUES:
        name = subjects.job_consumer(MODEL, priority, lane)
        info = await jetstream.call(broker, f"CONSUMER.INFO.JOBS.{name}", b"", dict)
        count += info["num_ack_pending"] + info["num_pending"]
    return count


async def test_publish_find_and_duplicate(broker: Broker) -> None:
    job = make_job()
    first = await jobs.publish_job(broker, job)
    again = await jobs.publish_job(broker, job)
    assert not first.duplicate
    assert again == jobs.Stored(first.seq, duplicate=True)
    assert await jobs.find_job(broker, job.response) == job
    assert await jobs.find_job(broker, make_job().response) is None


async def test_an_idempotency_key_stores_one_job(broker: Broker) -> None:
    first = await jobs.publish_job(broker, make_job(), msg_id="key-1")
    second = await jobs.publish_job(broker, make_job(), msg_id="key-1")
    assert second == jobs.Stored(first.seq, duplicate=True)


async def test_a_job_is_readable_by_its_headers(broker: Broker) -> None:
    job = make_job()
    await jobs.publish_job(broker, job)
    stored = await jetstream.last_message(broker, "JOBS", subjects.job(job))
    assert stored is not None
    assert stored.headers["Hr-Response"] == job.response
    assert stored.headers["Hr-Class"] == "interactive/fair"
    assert stored.headers["Hr-Prompt-Tokens"] == "3"


async def test_publishing_while_disconnected_fails_at_once(broker: Broker, nats_server: NatsServer) -> None:
    nats_server.kill()
    await until(lambda: not broker.connected)
    began = time.monotonic()
    with pytest.raises(HeadraceError) as caught:
        await jobs.publish_job(broker, make_job())
    assert caught.value.code == "broker_unavailable"
    assert time.monotonic() - began < 0.2


async def test_a_publish_survives_a_restart_and_is_stored_once(
    broker: Broker, nats_server: NatsServer
) -> None:
    nats_server.pause()
    job = make_job()
    publishing = asyncio.create_task(jobs.publish_job(broker, job, timeout_s=15))
    await until(lambda: broker.nc.pending_data_size == 0)
    nats_server.kill()
    nats_server.restart()
    await publishing
    found = [m async for m in jetstream.messages(broker, "JOBS", "hr.job.>")]
    assert [codec.decode_job(m.data).response for m in found] == [job.response]


async def test_a_job_is_buried_once(broker: Broker) -> None:
    job = make_job()
    letter = DeadLetter(
        response=job.response,
        code="poison",
        message="m",
        job=codec.encode(job),
        job_subject=subjects.job(job),
    )
    await jobs.bury(broker, MODEL, letter)
    await jobs.bury(broker, MODEL, letter)
    dead = [m async for m in jetstream.messages(broker, "DEAD", "hr.dead.>")]
    assert [codec.decode_dead_letter(m.data) for m in dead] == [letter]


@pytest.mark.parametrize("job_bytes", [-400, 0])
async def test_a_letter_that_is_too_large_is_cut(broker: Broker, job_bytes: int) -> None:
    """Of a job that just fits a message, and of one whose letter would fit without its headers."""
    data = b"\xc1" * (broker.nc.max_payload + job_bytes)
    letter = DeadLetter(
        response=make_job().response,
        code="invalid_job",
        message="does not decode",
        job=data,
        job_subject="hr.job.m.interactive.fair.r",
        history=tuple(f"{n} {'x' * 1000}" for n in range(2000)),
    )
    await jobs.bury(broker, MODEL, letter)
    (stored,) = [m async for m in jetstream.messages(broker, "DEAD", "hr.dead.>")]
    found = codec.decode_dead_letter(stored.data)
    assert len(stored.data) > broker.nc.max_payload - jetstream.HEADERS_ALLOWANCE - 16
    assert data.startswith(found.job)
    assert found.history[-1] == letter.history[-1][: len(found.history[-1])]
    assert found.message.startswith("does not decode (the letter took ")
    assert found.job_subject == letter.job_subject
    assert broker.epoch == 0


async def test_a_long_history_leaves_the_job_whole(broker: Broker) -> None:
    letter = DeadLetter(
        response=make_job().response,
        code="poison",
        message="m",
        job=b"job",
        job_subject="hr.job.m.interactive.fair.r",
        history=("x" * broker.nc.max_payload, "last"),
    )
    await jobs.bury(broker, MODEL, letter)
    (stored,) = [m async for m in jetstream.messages(broker, "DEAD", "hr.dead.>")]
    found = codec.decode_dead_letter(stored.data)
    assert found.job == b"job"
    assert found.history[-1] == "last"


async def test_two_pullers_take_a_thousand_jobs_once_each(broker: Broker) -> None:
    other = await Broker.connect(broker.config, name="other")
    takers = [Taker(broker), Taker(other)]
    slots = 7
    queues = topology.QUEUES
    all_jobs: list[Job] = []
    for n in range(1000):
        priority, lane = queues[n % len(queues)]
        all_jobs.append(make_job(priority=priority, lane=lane))

    async def work(taker: Taker) -> None:
        while sum(len(t.taken) for t in takers) < 1000 or taker.held:
            if taker.held:
                await taker.finish_one()
            else:
                await asyncio.sleep(0.001)

    try:
        async with asyncio.TaskGroup() as group:
            for taker in takers:
                taker.puller.set_free(slots)
                group.create_task(taker.puller.run())
            for chunk in range(0, 1000, 100):
                await asyncio.gather(
                    *(jobs.publish_job(broker, job) for job in all_jobs[chunk : chunk + 100])
                )
            await asyncio.gather(*(work(taker) for taker in takers))
            for taker in takers:
                taker.puller.stop()
        counts = Counter(response for taker in takers for response in taker.taken)
        assert counts == Counter(job.response for job in all_jobs)
        assert max(taker.most_held for taker in takers) <= slots
        assert all(taker.taken for taker in takers)
        assert await unacked(broker) == 0
    finally:
        await other.close()


async def test_an_idle_worker_gets_a_job_at_once(broker: Broker) -> None:
    taker = Taker(broker)
    taker.puller.set_free(16)
    delays_ms = []
    async with asyncio.TaskGroup() as group:
        group.create_task(taker.puller.run())
        await jobs.publish_job(broker, make_job())
        await until(lambda: len(taker.taken) == 1)
        for n in range(40):
            priority, lane = topology.QUEUES[n % 6]
            began = time.perf_counter()
            await jobs.publish_job(broker, make_job(priority=priority, lane=lane))
            await until(lambda n=n: len(taker.taken) == n + 2)  # type: ignore[misc]
            delays_ms.append((time.perf_counter() - began) * 1000)
            await taker.finish_one()
        taker.puller.stop()
    # Publish, ack and delivery; until() looks every 5 ms. A pull that had to be waited for takes 100 or more.
    assert sorted(delays_ms)[20] < 50


async def test_no_queue_starves_when_slots_are_fewer_than_queues(broker: Broker) -> None:
    taker = Taker(broker)
    taker.puller.set_free(1)
    for _ in range(120):
        await jobs.publish_job(broker, make_job())
    lower = [make_job(priority=priority, lane=lane) for priority, lane in topology.QUEUES[1:]]
    for job in lower:
        await jobs.publish_job(broker, job)
    async with asyncio.TaskGroup() as group:
        group.create_task(taker.puller.run())
        for _ in range(125):
            await until(lambda: bool(taker.held))
            await taker.finish_one()
        taker.puller.stop()
    places = [taker.taken.index(job.response) for job in lower]
    assert min(places) < 40  # the floor: not only after the whole backlog
    assert taker.taken[0] not in {job.response for job in lower}
    assert taker.most_held == 1


async def test_a_job_beyond_the_slots_waits(broker: Broker) -> None:
    taker = Taker(broker)
    taker.puller.set_free(2)
    sent = [make_job() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        group.create_task(taker.puller.run())
        for job in sent:
            await jobs.publish_job(broker, job)
        await until(lambda: len(taker.held) == 2)
        name = subjects.job_consumer(MODEL, "interactive", "fair")
        assert (await jetstream.call(broker, f"CONSUMER.INFO.JOBS.{name}", b"", dict))["num_pending"] == 1
        await taker.finish_one()
        await until(lambda: len(taker.taken) == 3)
        assert taker.taken == [job.response for job in sent]
        taker.puller.stop()


async def test_stop_gives_back_what_still_arrives(broker: Broker) -> None:
    leaving, staying = Taker(broker), Taker(broker)
    leaving.puller.set_free(8)
    run = asyncio.create_task(leaving.puller.run())
    await jobs.publish_job(broker, make_job())
    await until(lambda: len(leaving.taken) == 1)  # its pulls are out
    leaving.puller.stop()
    job = make_job()
    await jobs.publish_job(broker, job)
    async with asyncio.TaskGroup() as group:
        staying.puller.set_free(8)
        group.create_task(staying.puller.run())
        await until(lambda: staying.taken == [job.response], limit_s=5)  # well before ack_wait
        await run
        staying.puller.stop()
    assert len(leaving.taken) == 1


async def test_a_naked_job_comes_again_and_an_acked_one_does_not(broker: Broker) -> None:
    taker = Taker(broker)
    taker.puller.set_free(4)
    job = make_job()
    async with asyncio.TaskGroup() as group:
        group.create_task(taker.puller.run())
        await jobs.publish_job(broker, job)
        await until(lambda: len(taker.held) == 1)
        await jobs.nak_delivery(broker, taker.held.pop().ack_subject)
        await until(lambda: len(taker.held) == 1)
        assert taker.held[0].delivered == 2
        await taker.held[0].in_progress()
        assert await taker.held[0].ack()
        assert await taker.held[0].ack()  # a second ack is confirmed as well
        taker.puller.stop()
    assert await unacked(broker) == 0


async def test_an_exception_in_the_callback_ends_run(broker: Broker) -> None:
    def refuse(job: JobDelivery) -> None:
        raise RuntimeError("bug")

    puller = JobPuller(broker, MODEL, on_job=refuse)
    puller.set_free(1)
    await jobs.publish_job(broker, make_job())
    with pytest.raises(RuntimeError, match="bug"):
        async with asyncio.timeout(10):
            await puller.run()


async def test_pulling_survives_a_killed_server(broker: Broker, nats_server: NatsServer) -> None:
    taker = Taker(broker)
    taker.puller.set_free(20)
    async with asyncio.TaskGroup() as group:
        group.create_task(taker.puller.run())
        first = make_job()
        await jobs.publish_job(broker, first)
        await until(lambda: taker.taken == [first.response])
        for _ in range(3):
            nats_server.kill()
            nats_server.restart()
            await until(lambda: broker.connected)
            job = make_job()
            while True:
                try:
                    await jobs.publish_job(broker, job)
                except HeadraceError:
                    continue
                break
            await until(lambda job=job: job.response in taker.taken)  # type: ignore[misc]
        taker.puller.stop()


async def test_pulling_survives_a_hanging_server(broker: Broker, nats_server: NatsServer) -> None:
    taker = Taker(broker)
    taker.puller.set_free(20)
    async with asyncio.TaskGroup() as group:
        group.create_task(taker.puller.run())
        await jobs.publish_job(broker, make_job())
        await until(lambda: len(taker.taken) == 1)
        nats_server.pause()
        await asyncio.sleep(4)  # longer than the silence that a lost pull is told by
        nats_server.resume()
        job = make_job()
        await jobs.publish_job(broker, job)
        await until(lambda: job.response in taker.taken)
        taker.puller.stop()
    assert len(taker.taken) == 2


async def test_deleted_consumers_are_made_again(broker: Broker) -> None:
    taker = Taker(broker)
    taker.puller.set_free(20)
    async with asyncio.TaskGroup() as group:
        group.create_task(taker.puller.run())
        await jobs.publish_job(broker, make_job())
        await until(lambda: len(taker.taken) == 1)
        await taker.finish_one()
        for priority, lane in topology.QUEUES:
            name = subjects.job_consumer(MODEL, priority, lane)
            await jetstream.call(broker, f"CONSUMER.DELETE.JOBS.{name}", b"", msgspec.Raw)
        job = make_job(priority="standard")
        await jobs.publish_job(broker, job)
        await until(lambda: job.response in taker.taken, limit_s=10)
        taker.puller.stop()


async def test_stop_ends_a_start_without_a_server(broker: Broker, nats_server: NatsServer) -> None:
    taker = Taker(broker)
    taker.puller.set_free(20)
    run = asyncio.create_task(taker.puller.run())
    nats_server.kill()
    await until(lambda: not broker.connected)
    taker.puller.stop()
    async with asyncio.timeout(10):
        await run
    assert taker.taken == []


@pytest.mark.parametrize("when", ["at once", "while it repairs"])
async def test_stop_ends_while_the_server_is_away(broker: Broker, nats_server: NatsServer, when: str) -> None:
    taker = Taker(broker)
    taker.puller.set_free(20)
    run = asyncio.create_task(taker.puller.run())
    await jobs.publish_job(broker, make_job())
    await until(lambda: len(taker.taken) == 1)
    loops = taker.puller._loops
    nats_server.kill()
    await until(lambda: not broker.connected)
    if when == "while it repairs":
        await until(lambda: any(loop.lost for loop in loops))
    taker.puller.stop()
    async with asyncio.timeout(10):
        await run


async def test_nothing_is_pulled_while_disconnected(broker: Broker, nats_server: NatsServer) -> None:
    taker = Taker(broker)
    await topology.ensure_job_consumers(broker, MODEL)
    nats_server.kill()
    await until(lambda: not broker.connected)
    taker.puller.set_free(4)
    await taker.puller._round()
    assert [loop.outstanding for loop in taker.puller._loops] == [0] * 6
    assert broker.nc.pending_data_size == 0
    async with asyncio.TaskGroup() as group:
        nats_server.restart()
        await until(lambda: broker.connected)
        group.create_task(taker.puller.run())
        await jobs.publish_job(broker, make_job())
        await until(lambda: len(taker.taken) == 1)
        taker.puller.stop()


async def test_a_stream_that_is_gone_ends_run(broker: Broker) -> None:
    taker = Taker(broker)
    taker.puller.set_free(4)
    run = asyncio.create_task(taker.puller.run())
    await jobs.publish_job(broker, make_job())
    await until(lambda: len(taker.taken) == 1)
    await jetstream.call(broker, "STREAM.DELETE.JOBS", b"", msgspec.Raw)
    with pytest.raises(topology.TopologyError, match="JOBS"):
        async with asyncio.timeout(15):
            await run
    await topology.apply(broker)  # what the next start of the process does
    await topology.ensure_job_consumers(broker, MODEL)


async def test_a_job_whose_subject_is_not_text_is_delivered(broker: Broker, nats_server: NatsServer) -> None:
    subjects_seen: list[str] = []
    puller = JobPuller(broker, MODEL, on_job=lambda job: subjects_seen.append(job.delivery.subject))
    puller.set_free(4)
    async with asyncio.TaskGroup() as group:
        group.create_task(puller.run())
        with socket.create_connection(("127.0.0.1", nats_server.port), timeout=5) as connection:
            connection.recv(4096)
            subject = f"hr.job.{MODEL}.interactive.fair.".encode() + b"\xff\xfe"
            connection.sendall(b"CONNECT {}\r\nPUB " + subject + b" 1\r\nx\r\nPING\r\n")
            await until(lambda: bool(subjects_seen))
        await jobs.publish_job(broker, make_job())
        await until(lambda: len(subjects_seen) == 2)
        puller.stop()
    assert subjects_seen[0].endswith(".interactive.fair.\ufffd\ufffd")
