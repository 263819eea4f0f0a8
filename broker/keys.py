"""API keys in their bucket: making and revoking them, and the ring of keys that a gateway knows.

The ring listens to the bucket's subjects with a plain subscription, as ``presence.Roster`` does, and loads
the bucket at the start, at every reconnect and every ``RELOAD_S``. What it knows holds while the broker is
away.
Must not know how a client shows a key.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable

import msgspec
import nats.errors
from nats.aio.msg import Msg

from broker import jetstream, metrics, subjects
from broker.connection import Broker, NoAnswer
from schemas import codec
from schemas.key import KEY_ID_PATTERN, StoredKey

log = logging.getLogger(__name__)

RELOAD_S = 30.0  # for what a dropped message or a lagging replica kept from us
_RETRY_S = 0.1
_STREAM = f"KV_{subjects.KEYS_KV}"
_PREFIX = f"$KV.{subjects.KEYS_KV}."
_OPERATION = "KV-Operation"  # header of a KV delete marker
_KEY_ID = re.compile(KEY_ID_PATTERN)


async def store(broker: Broker, key: StoredKey) -> None:
    """Raises ``NoAnswer``, ``ApiError``; also where there is, or was, a key of this id."""
    await jetstream.publish(broker, f"{_PREFIX}{key.id}", codec.encode(key), {jetstream.EXPECTED_SEQ: "0"})


async def revoke(broker: Broker, key_id: str) -> bool:
    """For good: its marker stays. False where there is no such key. Raises ``NoAnswer``, ``ApiError``."""
    if not _KEY_ID.match(key_id):
        return False
    subject = f"{_PREFIX}{key_id}"
    found = await jetstream.last_message(broker, _STREAM, subject)
    if found is None or _OPERATION in found.headers:
        return False
    await jetstream.publish(broker, subject, b"", {_OPERATION: "DEL"})
    return True


async def stored_keys(broker: Broker) -> list[StoredKey]:
    """By age. Raises ``NoAnswer``, ``ApiError``."""
    keys = []
    async for item in jetstream.messages(broker, _STREAM, f"{_PREFIX}>"):
        if _OPERATION not in item.headers and (key := _decode(item.data)) is not None:
            keys.append(key)
    return sorted(keys, key=lambda key: key.created_unix_ms)


class KeyRing:
    """``ready`` is set when the bucket has been read once. ``on_revoked`` is told each id that was known and
    no longer opens anything."""

    def __init__(self, broker: Broker, *, on_revoked: Callable[[str], None]) -> None:
        self.ready = asyncio.Event()
        self._broker = broker
        self._on_revoked = on_revoked
        self._keys: dict[str, StoredKey] = {}
        self._revoked: set[str] = set()  # ids are never used again: no late or stale message revives one
        self._heard: set[str] | None = None  # while the bucket is read: what came meanwhile
        self._reload = asyncio.Event()

    def find(self, key_id: str) -> StoredKey | None:
        return self._keys.get(key_id)

    async def run(self) -> None:
        """Never returns."""
        self._broker.on_reconnect(self._reload.set)
        subscription = await self._broker.nc.subscribe(f"{_PREFIX}*", cb=self._hear)
        try:
            while True:
                self._reload.clear()
                await self._load()
                self.ready.set()
                try:
                    async with asyncio.timeout(RELOAD_S):
                        await self._reload.wait()
                except TimeoutError:
                    pass
        finally:
            self._broker.off_reconnect(self._reload.set)
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as error:
                log.debug("unsubscribe: %s", error)

    async def _load(self) -> None:
        while True:
            try:
                await self._broker.wait_connected()
                await self._read_bucket()
            except (NoAnswer, jetstream.ApiError) as error:
                log.debug("the keys cannot be read yet: %s", error)
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _read_bucket(self) -> None:
        self._heard = set()
        try:
            found = set()
            async for item in jetstream.messages(self._broker, _STREAM, f"{_PREFIX}>"):
                found.add(self._take(item.subject, item.data, _OPERATION in item.headers))
            for key_id in self._keys.keys() - found - self._heard:
                self._drop(key_id)  # its marker was purged, too
        finally:
            self._heard = None

    async def _hear(self, msg: Msg) -> None:
        key_id = self._take(msg.subject, msg.data, bool(msg.headers) and _OPERATION in (msg.headers or {}))
        if self._heard is not None:
            self._heard.add(key_id)

    def _take(self, subject: str, data: bytes, gone: bool) -> str:
        key_id = subject.removeprefix(_PREFIX)
        if gone:
            self._revoked.add(key_id)
            self._drop(key_id)
        elif key_id not in self._revoked and (key := _decode(data)) is not None and key.id == key_id:
            self._keys[key_id] = key
        return key_id

    def _drop(self, key_id: str) -> None:
        if self._keys.pop(key_id, None) is not None:
            self._on_revoked(key_id)


def _decode(data: bytes) -> StoredKey | None:
    try:
        return codec.decode_key(data)
    except msgspec.DecodeError as error:
        metrics.UNDECODABLE.labels(stream=subjects.KEYS_KV).inc()
        log.error("a stored API key does not decode and opens nothing: %s", error)
        return None
