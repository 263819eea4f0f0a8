"""What ``headrace keys`` does: API keys made, shown and revoked on the broker, for all gateways at once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from broker import keys, topology
from broker.connection import Broker, BrokerUnavailable, NoAnswer
from broker.jetstream import ApiError
from broker.topology import TopologyError
from schemas.config import Config, Nats
from schemas.ids import TENANT_PATTERN, TenantId
from schemas.key import StoredKey, new_key
from schemas.quota import OwnQuota

CONNECT_S = 5.0  # someone sits and waits
T = TypeVar("T")


class KeysError(Exception):
    """The message is for the operator."""


class ShownKey(msgspec.Struct, frozen=True, kw_only=True):
    """What may be told of a key. Times are unix milliseconds; ``expires_unix_ms`` null: never."""

    id: str
    tenant: str
    name: str
    quota: OwnQuota
    created_unix_ms: int
    expires_unix_ms: int | None
    expired: bool


def create(
    config: Config, tenant: str, *, name: str, quota: OwnQuota, lives_s: float | None
) -> tuple[str, str]:
    """The new key's id and its text, which cannot be shown again. Raises ``KeysError``."""
    if not re.match(TENANT_PATTERN, tenant):
        raise KeysError(f"{tenant!r} is no tenant's id: 1 to 64 letters, digits and _ . @ -")
    now_unix_ms = time.time_ns() // 1_000_000
    expires_unix_ms = 0 if lives_s is None else now_unix_ms + int(lives_s * 1000)
    text, stored = new_key(
        TenantId(tenant), name=name, quota=quota, now_unix_ms=now_unix_ms, expires_unix_ms=expires_unix_ms
    )
    _on_broker(config.nats, lambda broker: keys.store(broker, stored))
    return stored.id, text


def known(config: Config) -> list[ShownKey]:
    """Those not revoked, by age. Raises ``KeysError``."""
    return [_shown(key) for key in _on_broker(config.nats, keys.stored_keys)]


def revoke(config: Config, key_id: str) -> None:
    """Takes the whole key as well as its id. Raises ``KeysError``."""
    key_id = key_id.removeprefix("hr-")[:12]
    if not _on_broker(config.nats, lambda broker: keys.revoke(broker, key_id)):
        raise KeysError(f"there is no key {key_id}; `headrace keys list` shows those there are")


def _on_broker(config: Nats, work: Callable[[Broker], Awaitable[T]]) -> T:
    async def run() -> T:
        broker = await Broker.connect(config, name="keys", wait_s=CONNECT_S)
        try:
            await topology.apply(broker)
            return await work(broker)
        finally:
            await broker.close()

    try:
        return asyncio.run(run())
    except (ApiError, BrokerUnavailable, NoAnswer, TopologyError) as error:
        raise KeysError(str(error)) from error


def _shown(key: StoredKey) -> ShownKey:
    return ShownKey(
        id=key.id,
        tenant=key.tenant,
        name=key.name,
        quota=key.quota,
        created_unix_ms=key.created_unix_ms,
        expires_unix_ms=key.expires_unix_ms or None,
        expired=key.is_over(time.time() * 1000),
    )
