"""Presence against a real server: who appears, who leaves, who answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec

from broker import jetstream, presence, subjects
from broker.connection import Broker
from broker.presence import Roster
from schemas import codec
from schemas.ids import WorkerId
from schemas.presence import WorkerCard
from tests.integration.broker.samples import MODEL, until
from tests.integration.conftest import NatsServer

CARD = WorkerCard(
    worker=WorkerId("w-1"),
    model=MODEL,
    model_name="demo",
    revision="1",
    engine="sim",
    state="ready",
    slots=4,
    max_model_len=1024,
    vocab_size=100,
    tokenizer="demo-1",
)


def card(worker: str, **changes: object) -> WorkerCard:
    return msgspec.structs.replace(CARD, worker=WorkerId(worker), **changes)


@contextlib.asynccontextmanager
async def watching(broker: Broker) -> AsyncIterator[Roster]:
    roster = Roster(broker)
    task = asyncio.create_task(roster.run())
    try:
        async with asyncio.timeout(10):
            await roster.ready.wait()
        yield roster
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def ids(roster: Roster) -> list[str]:
    return [found.worker for found in roster.workers()]


async def test_a_worker_appears_changes_and_leaves(broker: Broker) -> None:
    async with watching(broker) as roster:
        changes: list[list[str]] = []
        roster.on_change(lambda: changes.append(ids(roster)))
        await presence.announce(broker, CARD)
        await until(lambda: ids(roster) == ["w-1"])
        await presence.announce(broker, card("w-1", running=3))
        await until(lambda: roster.workers()[0].running == 3)
        assert changes == [["w-1"]]  # load alone is no change
        await presence.announce(broker, card("w-1", state="draining"))
        await until(lambda: len(changes) == 2)
        await presence.withdraw(broker, CARD.worker)
        await until(lambda: ids(roster) == [])
        assert changes[-1] == []


async def test_a_roster_begun_later_knows_who_is_there(broker: Broker) -> None:
    for n in range(3):
        await presence.announce(broker, card(f"w-{n}", interval_s=15))
    await presence.withdraw(broker, WorkerId("w-1"))
    await stored(broker, 4)
    async with watching(broker) as roster:
        assert ids(roster) == ["w-0", "w-2"]


async def stored(broker: Broker, announcements: int) -> None:
    """Announcements are not acked."""
    info = f"STREAM.INFO.KV_{subjects.WORKERS_KV}"
    async with asyncio.timeout(20):
        while (await jetstream.call(broker, info, b"", dict))["state"]["last_seq"] < announcements:
            await asyncio.sleep(0.005)


async def test_a_silent_worker_is_dropped(broker: Broker) -> None:
    async with watching(broker) as roster:
        changes: list[list[str]] = []
        await presence.announce(broker, card("w-1", interval_s=0.2))
        await presence.announce(broker, card("w-slow", interval_s=15))
        await until(lambda: ids(roster) == ["w-1", "w-slow"])
        roster.on_change(lambda: changes.append(ids(roster)))
        await until(lambda: ids(roster) == ["w-slow"], limit_s=3)  # each by its own interval
        await until(lambda: changes == [["w-slow"]], limit_s=3)


async def test_the_roster_outlasts_a_restart(broker: Broker, nats_server: NatsServer) -> None:
    async with watching(broker) as roster:
        await presence.announce(broker, card("w-1", interval_s=0.5))
        await until(lambda: ids(roster) == ["w-1"])
        nats_server.kill()
        await until(lambda: not broker.connected)
        await presence.announce(broker, CARD)  # nothing happens
        await asyncio.sleep(1.6)  # longer than three intervals: not the worker's fault
        assert ids(roster) == ["w-1"]
        nats_server.restart()
        await until(lambda: broker.connected)
        assert ids(roster) == ["w-1"]
        await presence.announce(broker, card("w-2"))
        await until(lambda: "w-2" in ids(roster), limit_s=2)
        async with asyncio.timeout(5):
            while ids(roster) != ["w-2"]:  # w-1 had its chance
                await presence.announce(broker, card("w-2"))
                await asyncio.sleep(0.1)
        assert broker.epoch == 1


async def test_who_left_during_an_outage_is_not_spared(broker: Broker, nats_server: NatsServer) -> None:
    """The server goes on where the roster cannot reach it, and a worker leaves there."""
    async with watching(broker) as roster:
        await presence.announce(broker, CARD)
        await presence.announce(broker, card("w-2"))
        await until(lambda: ids(roster) == ["w-1", "w-2"])
        nats_server.kill()
        await until(lambda: not broker.connected)
        with nats_server.elsewhere() as elsewhere:
            other = await Broker.connect(elsewhere, name="worker")
            await presence.withdraw(other, CARD.worker)
            await other.request("$JS.API.INFO")
            await other.close()
        nats_server.start()
        await until(lambda: broker.connected)
        await until(lambda: ids(roster) == ["w-2"], limit_s=3)  # well before three intervals


async def test_bad_cards_are_skipped(broker: Broker) -> None:
    async with watching(broker) as roster:
        await jetstream.publish(broker, "$KV.hr_workers.w-9", b"\xc1")
        await jetstream.publish(broker, "$KV.hr_workers.w-8", codec.encode(card("w-8", interval_s=0.0)))
        await presence.announce(broker, CARD)
        await until(lambda: ids(roster) == ["w-1"])


async def test_pings_tell_alive_dead_and_silent(broker: Broker, nats_server: NatsServer) -> None:
    other = await Broker.connect(broker.config, name="worker")
    try:
        await presence.answer_pings(other, CARD.worker)
        await other.request("$JS.API.INFO")
        assert await presence.ping(broker, CARD.worker, 2) == "alive"
        assert await presence.ping(broker, WorkerId("w-none"), 2) == "dead"
        await other.nc.subscribe("hr.worker.w-hangs.ping")
        await other.request("$JS.API.INFO")
        assert await presence.ping(broker, WorkerId("w-hangs"), 0.2) == "silent"
    finally:
        await other.close()
    async with asyncio.timeout(10):  # the server may still be taking the connection down
        while await presence.ping(broker, CARD.worker, 0.2) != "dead":
            pass
    nats_server.kill()
    await until(lambda: not broker.connected)
    assert await presence.ping(broker, CARD.worker, 2) is None
