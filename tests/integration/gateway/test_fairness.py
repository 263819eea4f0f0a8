"""Who starts before whom: lanes, classes and reserved slots, end to end, by the order of the reply logs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker import jetstream, subjects
from broker.connection import Broker
from gateway.generation import Ended, Generation, Queued, Started, Update
from gateway.live import Live
from gateway.pipeline import Pipeline
from schemas import codec, reply
from schemas.config import Config, Gateway, Limits, Sim
from schemas.errors import HeadraceError
from schemas.ids import TenantId
from schemas.job import Priority
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import ask, configured, edge, until, worker

SLOTS = 8
FLOOD, VICTIM = TenantId("flood"), TenantId("victim")
QUICK = Sim(slots=SLOTS, inter_token_ms=1, prefill_base_ms=1, mean_output_tokens=0)
ENDLESS = Sim(slots=2, inter_token_ms=20, prefill_base_ms=1, mean_output_tokens=0)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


@contextlib.asynccontextmanager
async def gateways(config: Config, folder: Path, count: int) -> AsyncIterator[list[Pipeline]]:
    async with contextlib.AsyncExitStack() as stack:
        edges = [await stack.enter_async_context(edge(config, folder)) for _ in range(count)]
        await stack.enter_async_context(worker(config))
        for each in edges:
            await until(lambda each=each: each.pipeline.ready()[0])  # type: ignore[misc]
        yield [each.pipeline for each in edges]


def config_of(nats: NatsServer, redis: RedisServer, sim: Sim, **sections: object) -> Config:
    """All parts share one busy event loop here: nobody is taken for dead or away because of that."""
    config = configured(nats, redis, sim=sim, gateway=Gateway(disconnect_grace_s=120))
    patient = {
        "redis": replace(config.redis, timeout_s=10),
        "worker": replace(config.worker, presence_interval_s=10),
    }
    return replace(config, **patient, **sections)


def job(tenant: TenantId, max_tokens: int, priority: Priority = "interactive") -> Generation:
    return replace(ask("hello", tenant=tenant, max_tokens=max_tokens), priority=priority)


async def submit_all(pipelines: Sequence[Pipeline], jobs: Sequence[Generation]) -> list[Live]:
    lives: list[Live] = []
    for at in range(0, len(jobs), 100):
        some = enumerate(jobs[at : at + 100])
        lives += await asyncio.gather(*(pipelines[n % len(pipelines)].submit(each) for n, each in some))
    return lives


def started_at(live: Live) -> int:
    """The place of its ``Started`` in the stream; 0: it has none."""
    return live.log.fence or 0


async def overtaken_by(config: Config, victim: Live) -> int:
    """How many jobs were started between the storing of its job and its own start, by the server's clock."""
    broker = await Broker.connect(config.nats, name="test")
    try:
        job_subject = subjects.job_by_response(victim.response_id)
        (stored,) = await jetstream.last_messages(broker, subjects.JOBS, [job_subject])
        fences = [found async for found in jetstream.messages(broker, subjects.REPLIES, "hr.reply.*.*.*.f")]
    finally:
        await broker.close()
    return sum(
        fence.stored_unix_ms >= stored.stored_unix_ms
        for fence in fences
        if fence.seq < started_at(victim)
        and isinstance(codec.decode_fence_message(fence.data), reply.Started)
    )


async def until_started(lives: Sequence[Live]) -> None:
    await until(lambda: all(live.started for live in lives), limit_s=60)


async def test_a_flood_of_a_thousand_delays_another_tenant_by_a_few_slots(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = config_of(nats_server, redis_server, QUICK)
    async with gateways(config, tmp_path, 2) as pipelines:
        flood = await submit_all(pipelines, [job(FLOOD, 30)] * 1000)
        victims = []
        for pipeline in (*pipelines, *pipelines):
            victims.append(await pipeline.submit(job(VICTIM, 2)))
            await until_started(victims)
        waiting = sum(not live.started for live in flood)
        assert waiting > 300, "the flood was over too soon to show anything"
        overtaken = [await overtaken_by(config, victim) for victim in victims]
        assert max(overtaken) <= 2 * SLOTS, overtaken
        assert {live.job.lane for live in flood} == {"fair", "over"}
        assert (
            sum(live.job.lane == "fair" for live in flood) < 100
        )  # of 1,000: its share, and what ended since


async def test_interactive_before_standard_before_batch(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = config_of(nats_server, redis_server, QUICK, limits=Limits(min_share=10_000))
    async with gateways(config, tmp_path, 1) as pipelines:
        batch = await submit_all(pipelines, [job(FLOOD, 60, "batch")] * 120)
        standard = await submit_all(pipelines, [job(FLOOD, 60, "standard")] * 30)
        urgent = await submit_all(pipelines, [job(FLOOD, 2, "interactive")] * 10)
        before = max(map(started_at, [*batch, *standard]))
        await until_started([*urgent, *standard])
        between = [live for live in (*batch, *standard) if before < started_at(live)]
        last_urgent = max(map(started_at, urgent))
        assert sum(started_at(live) < last_urgent for live in between) <= 2 * SLOTS
        late = [live for live in batch if before < started_at(live) < max(map(started_at, standard))]
        assert len(late) <= 2 * SLOTS  # those that the floor let pass
        assert any(not live.started for live in batch)


async def test_a_reserved_slot_is_there_at_once(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = config_of(nats_server, redis_server, ENDLESS)
    reserving = replace(config.worker, reserved_slots=1)
    async with gateways(replace(config, worker=reserving), tmp_path, 1) as pipelines:
        batch = await submit_all(pipelines, [job(FLOOD, 2000, "batch")] * 3)
        await until(lambda: any(live.started for live in batch))
        urgent = await pipelines[0].submit(job(VICTIM, 2))
        await until_started([urgent])
        assert all(live.end is None for live in batch)
        assert sum(live.started for live in batch) == 1


async def test_a_waiting_response_is_told_its_place(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = config_of(nats_server, redis_server, ENDLESS)
    async with gateways(config, tmp_path, 2) as (here, there):
        running = [await here.submit(job(FLOOD, 2000)), await there.submit(job(FLOOD, 2000))]
        await until_started(running)
        assert running[0].queued == Queued(0, 0)
        first = await here.submit(job(FLOOD, 2000))
        last = await there.submit(job(FLOOD, 5))
        await until(lambda: last.queued is not None and last.queued.position == 2)  # over both gateways
        reader = last.reader()
        told: list[Update] = []
        await here.cancel(running[0].response_id, FLOOD)
        await until_started([first])
        while not any(isinstance(update, Queued) for update in told):
            told += await reader.next()
        await here.cancel(first.response_id, FLOOD)
        while not isinstance(told[-1], Ended):
            told += await reader.next()
        reader.close()
        positions = [update.position for update in told if isinstance(update, Queued)]
        assert positions[0] == 1
        assert positions == sorted(positions, reverse=True)
        kinds = [type(update) for update in told]
        assert kinds[len(positions)] is Started  # and nothing of the queue behind it
        await here.cancel(running[1].response_id, FLOOD)


async def test_a_full_queue_refuses_at_once(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = config_of(nats_server, redis_server, ENDLESS, limits=Limits(max_queued_interactive=3))
    async with gateways(config, tmp_path, 2) as (here, there):
        await until_started(await submit_all([here], [job(FLOOD, 2000)] * 2))
        await submit_all([here], [job(FLOOD, 2000)] * 3)
        with pytest.raises(HeadraceError) as refused:
            await here.submit(job(VICTIM, 5))
        assert refused.value.code == "queue_full"
        assert refused.value.retry_after_s
        await there.submit(job(VICTIM, 5, "batch"))  # another class has its own room

        async def is_refused() -> bool:
            try:
                live = await there.submit(job(VICTIM, 5))
            except HeadraceError as error:
                return error.code == "queue_full"
            await there.cancel(live.response_id, VICTIM)
            return False

        async with asyncio.timeout(20):
            while not await is_refused():
                await asyncio.sleep(0.2)


async def test_what_cannot_start_in_time_is_refused_at_once(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    slow = Sim(slots=1, inter_token_ms=20, prefill_base_ms=1, mean_output_tokens=0)
    config = config_of(nats_server, redis_server, slow)
    async with gateways(config, tmp_path, 1) as (here,):
        await until_ended([await here.submit(job(FLOOD, 50))])  # a second each
        flood = await submit_all([here], [job(FLOOD, 50)] * 30)
        with pytest.raises(HeadraceError) as refused:
            await here.submit(replace(job(FLOOD, 5), deadline_s=3))
        assert refused.value.code == "deadline_unreachable"
        assert 1 <= (refused.value.retry_after_s or 0) <= 60
        in_share = await here.submit(replace(job(VICTIM, 5), deadline_s=10))  # only one is before it
        await until_ended([in_share])
        assert any(not live.started for live in flood)
        assert in_share.end is not None
        assert in_share.end.outcome == "incomplete"


async def until_ended(lives: Sequence[Live]) -> None:
    await until(lambda: all(live.end is not None for live in lives), limit_s=30)


async def test_every_end_gives_the_place_back(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Finished, cancelled while running, cancelled while waiting, and refused for its prompt."""
    config = config_of(nats_server, redis_server, ENDLESS, limits=Limits(concurrent_responses=3))
    async with gateways(config, tmp_path, 2) as (here, there):

        async def fill() -> list[Live]:
            async with asyncio.timeout(20):
                lives: list[Live] = []
                while len(lives) < 3:
                    with contextlib.suppress(HeadraceError):
                        lives.append(await there.submit(job(FLOOD, 2000)))
                        continue
                    await asyncio.sleep(0.02)
            with pytest.raises(HeadraceError, match="concurrent responses"):
                await here.submit(job(FLOOD, 1))
            return lives

        async def refused_for_its_prompt() -> None:
            """A place that is on its way back still counts for a moment."""
            async with asyncio.timeout(20):
                while True:
                    with pytest.raises(HeadraceError) as told:
                        await there.submit(ask("x", tenant=FLOOD, max_tokens=1_000_000))
                    if told.value.code == "context_length_exceeded":
                        return
                    assert told.value.code == "rate_limit_exceeded"
                    await asyncio.sleep(0.02)

        for _ in range(2):
            lives = await fill()
            for live in lives:  # two run and one waits
                await here.cancel(live.response_id, FLOOD)
            await until_ended(lives)
        for _ in range(5):
            await refused_for_its_prompt()
        await until_ended(await submit_all([here], [job(FLOOD, 2)] * 3))
        lives = await fill()
        for live in lives:
            await there.cancel(live.response_id, FLOOD)
        await until_ended(lives)
