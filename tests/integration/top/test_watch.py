"""What ``headrace top`` sees of real queues, workers and logs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from broker.connection import Broker
from deploy.top.snapshot import Snapshot, TenantRow
from deploy.top.watch import Watch
from schemas.config import Sim
from schemas.ids import TenantId
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import ask, configured, edge, finish, until, worker

SLOTS = 2
SLOW = Sim(slots=SLOTS, inter_token_ms=20, mean_output_tokens=0, prefill_base_ms=1)


async def seen(watch: Watch, tenants: tuple[TenantRow, ...]) -> Snapshot:
    """The first look that shows these."""
    async with asyncio.timeout(20):
        while (snapshot := await watch.look()).tenants != tenants:
            await asyncio.sleep(0.05)
    return snapshot


def row(tenant: str, waiting: int = 0, over: int = 0, running: int = 0) -> TenantRow:
    return TenantRow(tenant=tenant, waiting=waiting, over=over, running=running)


async def test_who_waits_and_runs_and_what_failed(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = configured(nats_server, redis_server, sim=SLOW)
    one, two = TenantId("acme"), TenantId("globex")
    async with edge(config, tmp_path) as running, worker(config):
        await until(lambda: bool(running.pipeline.models()))
        top = await Broker.connect(config.nats, name="top")
        try:
            async with Watch.on(top) as watch:
                assert await seen(watch, ()) is not None
                first = [
                    await running.pipeline.submit(ask(f"a{n}", tenant=one, max_tokens=200)) for n in range(2)
                ]
                await seen(watch, (row("acme", running=2),))
                late = await running.pipeline.submit(ask("b", tenant=two, max_tokens=5, deadline_s=0.5))
                snapshot = await seen(watch, (row("acme", running=2), row("globex", waiting=1)))
                (busy,) = [queue for queue in snapshot.queues if queue.waiting]
                assert (busy.model, busy.priority, busy.lane, busy.running) == (
                    "headrace-sim",
                    "interactive",
                    "fair",
                    2,
                )
                assert busy.oldest_s is not None
                assert busy.oldest_s < 20
                (shown,) = snapshot.workers
                assert (shown.model, shown.slots, shown.state) == ("headrace-sim", SLOTS, "ready")
                (gateway,) = snapshot.gateways
                assert gateway.listening
                assert {stream.stream for stream in snapshot.streams} == {"JOBS", "REPLIES", "DEAD"}
                await finish(late)
                for live in first:
                    await finish(live)
                snapshot = await seen(watch, ())
                (failure,) = snapshot.failures
                assert (failure.code, failure.tenant, failure.model) == (
                    "deadline_exceeded",
                    "globex",
                    "headrace-sim",
                )
                assert failure.response == late.job.response
            # one that comes later finds the failure in the logs
            async with Watch.on(top) as later:
                snapshot = await later.look()
                assert snapshot.failures[0].response == failure.response
                assert msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot) == snapshot
        finally:
            await top.close()


async def test_a_lost_broker_is_told_and_it_goes_on(broker: Broker, nats_server: NatsServer) -> None:
    async with Watch.on(broker) as watch:
        assert (await watch.look()).connected
        nats_server.kill()
        async with asyncio.timeout(20):
            while (lost := await watch.look()).connected:
                await asyncio.sleep(0.05)
        assert lost.error
        assert lost.streams
        nats_server.restart()
        async with asyncio.timeout(20):
            while not (again := await watch.look()).connected or again.error:
                await asyncio.sleep(0.05)


async def test_a_look_is_a_bounded_number_of_requests(broker: Broker) -> None:
    """Of an idle system: a busy one costs four more."""
    async with Watch.on(broker) as watch:
        before = broker.nc.stats["out_msgs"]
        await watch.look()
        assert broker.nc.stats["out_msgs"] - before <= 8
