"""The ring of keys on a real server: what it hears, what it missed, and what stays out for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from broker import keys, subjects
from broker.connection import Broker
from broker.jetstream import ApiError
from broker.keys import KeyRing
from schemas import codec
from schemas.ids import TenantId
from schemas.key import StoredKey, new_key
from schemas.quota import OwnQuota
from tests.integration.conftest import NatsServer

LIMIT_S = 20.0


def made(tenant: str = "acme") -> StoredKey:
    return new_key(TenantId(tenant), name="n", quota=OwnQuota(requests_per_minute=1), now_unix_ms=1)[1]


@asynccontextmanager
async def ring(broker: Broker, revoked: list[str]) -> AsyncIterator[KeyRing]:
    held = KeyRing(broker, on_revoked=revoked.append)
    running = asyncio.create_task(held.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            await held.ready.wait()
        yield held
        assert not running.done()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_is_stored_is_known_and_what_is_revoked_is_told(broker: Broker) -> None:
    early, late = made(), made("globex")
    await keys.store(broker, early)
    revoked: list[str] = []
    async with ring(broker, revoked) as held:
        assert held.find(early.id) == early
        await keys.store(broker, late)
        await until(lambda: held.find(late.id) == late)
        assert await keys.stored_keys(broker) == [early, late]
        assert await keys.revoke(broker, early.id)
        await until(lambda: revoked == [early.id])
        assert held.find(early.id) is None
        assert await keys.stored_keys(broker) == [late]
    async with ring(broker, []) as held:
        assert (held.find(early.id), held.find(late.id)) == (None, late)


async def test_a_revoked_key_does_not_come_back(broker: Broker) -> None:
    key = made()
    await keys.store(broker, key)
    revoked: list[str] = []
    async with ring(broker, revoked) as held:
        await keys.revoke(broker, key.id)
        await until(lambda: revoked == [key.id])
        await broker.nc.publish(f"$KV.{subjects.KEYS_KV}.{key.id}", codec.encode(key))  # as one that was late
        other = made()
        await keys.store(broker, other)
        await until(lambda: held.find(other.id) is not None)
        assert held.find(key.id) is None


@pytest.mark.parametrize("key_id", ["0123456789ab", "*", ">", "a.b", ""])
async def test_only_what_is_there_can_be_revoked(broker: Broker, key_id: str) -> None:
    kept = made()
    await keys.store(broker, kept)
    assert not await keys.revoke(broker, key_id)
    assert await keys.revoke(broker, kept.id)
    assert not await keys.revoke(broker, kept.id)
    with pytest.raises(ApiError):
        await keys.store(broker, kept)


async def test_what_happened_while_it_was_cut_off_counts_when_it_is_back(
    broker: Broker, nats_server: NatsServer
) -> None:
    gone, kept, new = made(), made(), made()
    for key in (gone, kept):
        await keys.store(broker, key)
    revoked: list[str] = []
    async with ring(broker, revoked) as held:
        nats_server.kill()
        with nats_server.elsewhere() as elsewhere:
            other = await Broker.connect(elsewhere, name="other")
            await keys.revoke(other, gone.id)
            await keys.store(other, new)
            await other.close()
        assert held.find(gone.id) == gone, "it could not hear of it"
        nats_server.start()
        await until(lambda: revoked == [gone.id])
        await until(lambda: held.find(new.id) == new)
        assert held.find(kept.id) == kept


async def test_a_key_that_was_purged_counts_no_more(broker: Broker, nats_server: NatsServer) -> None:
    key, kept = made(), made()
    for each in (key, kept):
        await keys.store(broker, each)
    revoked: list[str] = []
    async with ring(broker, revoked) as held:
        await broker.js.purge_stream(f"KV_{subjects.KEYS_KV}", subject=f"$KV.{subjects.KEYS_KV}.{key.id}")
        nats_server.restart()
        await until(lambda: revoked == [key.id])
        assert held.find(kept.id) == kept


async def test_what_does_not_decode_opens_nothing(broker: Broker) -> None:
    key = made()
    async with ring(broker, []) as held:
        await broker.nc.publish(f"$KV.{subjects.KEYS_KV}.0123456789ab", b"\xc1")
        await broker.nc.publish(f"$KV.{subjects.KEYS_KV}.0123456789ac", codec.encode(key))
        await keys.store(broker, key)
        await until(lambda: held.find(key.id) is not None)
        assert held.find("0123456789ab") is None
        assert held.find("0123456789ac") is None, "a key under another's id"
