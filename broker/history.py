"""Reads what is stored under some subjects: a little by direct get, much by a passing consumer.

A direct get answers a short log in 0.3 ms, and each of its messages carries six headers, which cost 5 us; a
consumer costs 1 to 2 ms to make and to delete. Subjects are read by their names, one by one: behind the last
match of a wildcard nats-server looks at each message that the stream holds, which are 30 ms of a million.
Must not know what the messages are.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
from collections.abc import Iterable, Sequence

import msgspec
import nats.errors

from broker import jetstream
from broker.connection import Broker, NoAnswer
from broker.jetstream import ApiError, StoredMessage
from broker.pull import Delivery, PullLoop

log = logging.getLogger(__name__)

SHORT = 128  # messages: what is longer is worth a consumer
BATCH = 500
EXPIRES_S = 5.0
SILENCE_S = EXPIRES_S + 1.0
INACTIVE_S = 10  # the server forgets the consumer of a reader that died
AGAIN_S = 0.02
LAG_LIMIT_S = 2.0  # for a replica to catch up with another one


class ReaderConsumer(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer for reading along: no acks, in the server's memory, forgotten when unused."""

    name: str
    description: str
    filter_subject: str
    deliver_policy: str = "by_start_sequence"
    opt_start_seq: int
    ack_policy: str = "none"
    replay_policy: str = "instant"
    inactive_threshold: int  # ns
    headers_only: bool = False
    num_replicas: int = 1
    mem_storage: bool = True


class _CreateConsumer(msgspec.Struct, frozen=True):
    stream_name: str
    config: ReaderConsumer


class _Created(msgspec.Struct, frozen=True):
    num_pending: int = 0


async def create_reader(broker: Broker, stream: str, config: ReaderConsumer) -> int:
    """How many messages it will find. Raises ``ApiError``, ``NoAnswer``."""
    subject = f"CONSUMER.CREATE.{stream}.{config.name}.{config.filter_subject}"
    payload = msgspec.json.encode(_CreateConsumer(stream, config))
    return (await jetstream.call(broker, subject, payload, _Created, timeout_s=2.0)).num_pending


async def delete_reader(broker: Broker, stream: str, name: str) -> None:
    """A consumer that is gone, or cannot be reached, ends by itself."""
    try:
        await jetstream.call(broker, f"CONSUMER.DELETE.{stream}.{name}", b"", msgspec.Raw)
    except (NoAnswer, ApiError) as error:
        log.debug("consumer %s: %s", name, error)


async def read_stored(
    broker: Broker, stream: str, names: Sequence[str], *, first_seq: int = 1
) -> list[StoredMessage]:
    """What is stored from ``first_seq`` on under these subjects (no wildcards), in stream order and without
    a gap, up to a moment between call and answer. Headers may be missing. Raises ``NoAnswer`` where the
    reading broke off."""
    give_up_s = asyncio.get_running_loop().time() + LAG_LIMIT_S
    while (found := await _read_by_names(broker, stream, names, first_seq)) is None:
        if asyncio.get_running_loop().time() > give_up_s:
            raise NoAnswer("timeout", names[0])
        await asyncio.sleep(AGAIN_S)
    return found


async def _read_by_names(
    broker: Broker, stream: str, names: Sequence[str], first_seq: int
) -> list[StoredMessage] | None:
    """None: as ``in_stream_order``. All is asked for at once, for the sake of far brokers; a server answers
    one connection's requests in their order, so the pages reach the last messages."""
    last, pages = await asyncio.gather(
        jetstream.last_messages(broker, stream, names, first_seq=first_seq),
        _first_pages(broker, stream, names, first_seq),
    )
    newest = {message.subject: message.seq for message in last}
    read = []
    for name, (found, more) in zip(names, pages, strict=True):
        if name not in newest:
            continue
        if more and found[-1].seq < newest[name]:
            next_seq = found[-1].seq + 1
            found += await _read_by_consumer(broker, stream, name, next_seq, until=newest[name])
        read.append((newest[name], found))
    return in_stream_order(read)


async def _first_pages(
    broker: Broker, stream: str, names: Sequence[str], first_seq: int
) -> list[tuple[list[StoredMessage], bool]]:
    return await asyncio.gather(
        *(jetstream.next_messages(broker, stream, name, first_seq, SHORT) for name in names)
    )


def in_stream_order(read: Iterable[tuple[int, Sequence[StoredMessage]]]) -> list[StoredMessage] | None:
    """Of some subjects, the sequence of its last message, all at one moment, and what its own reading found.
    What was stored at that moment; None where a reading does not come so far, because a replica answered it
    that lags behind, or the message was dropped: what another subject has behind that point may not be
    shown without it."""
    parts = []
    for last_seq, found in read:
        part = [message for message in found if message.seq <= last_seq]
        if not part or part[-1].seq != last_seq:
            return None
        parts.append(part)
    return list(heapq.merge(*parts, key=lambda message: message.seq))


async def read_since(
    broker: Broker, stream: str, subject_filter: str, since_unix_ms: float
) -> list[StoredMessage]:
    """What was stored at this time and later. Raises ``NoAnswer`` where the reading broke off."""
    found, more = await jetstream.messages_since(broker, stream, subject_filter, since_unix_ms, SHORT)
    if more:
        found += await _read_by_consumer(broker, stream, subject_filter, found[-1].seq + 1)
    return found


async def read_headers(
    broker: Broker, stream: str, subject_filter: str, *, first_seq: int
) -> list[StoredMessage]:
    """As ``read_stored``, all of it with headers and without the data, which the server does not send."""
    return await _read_by_consumer(broker, stream, subject_filter, first_seq, headers_only=True)


async def _read_by_consumer(
    broker: Broker,
    stream: str,
    subject_filter: str,
    first_seq: int,
    *,
    until: int | None = None,
    headers_only: bool = False,
) -> list[StoredMessage]:
    """``until``: what comes behind this sequence need not be read."""
    read: list[StoredMessage] = []
    done = asyncio.Event()
    news = asyncio.Event()

    def take(delivery: Delivery) -> None:
        if done.is_set():
            return
        read.append(
            StoredMessage(
                delivery.subject,
                delivery.stream_seq,
                delivery.stored_unix_ms,
                delivery.data,
                delivery.headers or {},
            )
        )
        if delivery.consumer_seq != len(read):
            raise NoAnswer("disconnected", subject_filter)  # a delivery is missing
        if delivery.pending == 0 or delivery.stream_seq == until:
            done.set()
        if done.is_set() or loop.outstanding == 0:
            news.set()

    name = f"read-{secrets.token_hex(6)}"
    config = ReaderConsumer(
        name=name,
        description="Headrace: reads a log once",
        filter_subject=subject_filter,
        opt_start_seq=first_seq,
        inactive_threshold=INACTIVE_S * 1_000_000_000,
        headers_only=headers_only,
    )
    if await create_reader(broker, stream, config) == 0:
        done.set()
    loop = PullLoop(broker, stream, name, on_delivery=take, on_news=news.set, silence_s=SILENCE_S)
    try:
        await loop.open()
        while not done.is_set():
            if loop.failure is not None:
                raise loop.failure
            if loop.lost is not None:
                raise NoAnswer("disconnected", subject_filter)
            if loop.outstanding == 0:
                await loop.pull(BATCH, expires_s=EXPIRES_S)
            news.clear()
            async with asyncio.timeout(SILENCE_S):
                await news.wait()
    except (TimeoutError, nats.errors.Error):
        raise NoAnswer("timeout", subject_filter) from None
    finally:
        await loop.close()
        await delete_reader(broker, stream, name)
    return read
