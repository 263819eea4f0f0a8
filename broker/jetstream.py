"""A thin typed layer over JetStream's wire API: acked publishes, direct gets, API requests.

nats-py's own layer lacks what Headrace needs (batched direct gets, newer configuration fields, a clear
difference between *refused* and *unknown*). Reference: ADR-1, ADR-31 and ADR-50 in
nats-io/nats-architecture-and-design. Must not know any stream of Headrace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg

from broker.connection import Broker, NoAnswer
from broker.nats_client import Headers

API = "$JS.API"
API_TIMEOUT_S = 5.0
PUBLISH_TRY_S = 2.0  # one try of a publish; then it is sent again under the same message id
BATCH = 1000  # messages of one direct-get answer

# err_code values of nats-server's errors.json
CONSUMER_NOT_FOUND = 10014
CONSUMER_EXISTS = 10148
STREAM_NAME_IN_USE = 10058
STREAM_NOT_FOUND = 10059
NO_STORAGE = 10047
WRONG_LAST_SEQUENCE = (10071, 10164)  # the second is what a cluster says

HEADERS_ALLOWANCE = 4096  # bytes; the server's max_payload counts the headers, too
MSG_ID = "Nats-Msg-Id"
EXPECTED_SEQ = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SEQ_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"

_WIRE_HEADERS = ("Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp")


class ApiError(Exception):
    """JetStream's own answer: known not to have been done."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        self.code = code
        self.err_code = err_code
        self.description = description
        super().__init__(f"{description} ({err_code})")

    @property
    def passing(self) -> bool:
        """The server is starting, electing or overloaded: the same request may succeed later."""
        return self.code == 503

    @property
    def wrong_last_sequence(self) -> bool:
        return self.err_code in WRONG_LAST_SEQUENCE


class _Error(msgspec.Struct, frozen=True):
    code: int = 500
    err_code: int = 0
    description: str = "unknown error"


class _Failure(msgspec.Struct, frozen=True):
    error: _Error | None = None


class PubAck(msgspec.Struct, frozen=True):
    """``duplicate``: a message with this id had been stored; ``seq`` is its sequence."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class StoredMessage:
    subject: str
    seq: int
    stored_unix_ms: float
    data: bytes
    headers: Mapping[str, str]


T = TypeVar("T")
_failure = msgspec.json.Decoder(_Failure)
_pub_ack = msgspec.json.Decoder(PubAck)


def _raise_failure(data: bytes) -> None:
    error = _failure.decode(data).error
    if error is not None:
        raise ApiError(error.code, error.err_code, error.description)


async def call(
    broker: Broker, subject: str, payload: bytes, answer: type[T], timeout_s: float = API_TIMEOUT_S
) -> T:
    """One request to ``$JS.API.<subject>``. Raises ``ApiError`` or ``NoAnswer``."""
    msg = await broker.request(f"{API}.{subject}", payload, timeout_s=timeout_s)
    _raise_failure(msg.data)
    return msgspec.json.decode(msg.data, type=answer)


async def publish(
    broker: Broker,
    subject: str,
    data: bytes,
    headers: Headers | None = None,
    *,
    timeout_s: float = PUBLISH_TRY_S,
) -> PubAck:
    """One try. Raises ``ApiError`` (not stored) or ``NoAnswer`` (unknown, unless nobody listens)."""
    return read_ack(await broker.request(subject, data, timeout_s=timeout_s, headers=headers))


def read_ack(msg: Msg) -> PubAck:
    """What JetStream answers to a publish. Raises ``ApiError``: it was not stored."""
    if not msg.data:  # no responders: no stream takes this subject, or JetStream is off
        raise ApiError(503, 0, "nothing stores this subject")
    _raise_failure(msg.data)
    return _pub_ack.decode(msg.data)


async def publish_until_stored(
    broker: Broker, subject: str, data: bytes, headers: Headers, *, timeout_s: float | None = None
) -> PubAck:
    """Try until the outcome is known. ``headers`` must hold a ``Nats-Msg-Id``, so that a first try whose
    ack was lost is found again instead of stored twice (the server looks for duplicates before it checks
    an expected sequence). Raises ``ApiError`` when refused, ``NoAnswer`` after ``timeout_s`` (None: never;
    the caller owns the time)."""
    loop = asyncio.get_running_loop()
    give_up = None if timeout_s is None else loop.time() + timeout_s
    pause_s = 0.02
    while True:
        left_s = PUBLISH_TRY_S if give_up is None else give_up - loop.time()
        try:
            return await publish(
                broker, subject, data, headers, timeout_s=max(0.001, min(PUBLISH_TRY_S, left_s))
            )
        except (NoAnswer, ApiError) as error:
            if isinstance(error, ApiError) and not error.passing:
                raise
            trouble = NoAnswer("timeout", subject) if isinstance(error, ApiError) else error
        if give_up is not None and loop.time() + pause_s >= give_up:
            raise trouble
        try:
            async with asyncio.timeout_at(give_up):
                await broker.wait_connected()
                await asyncio.sleep(pause_s)
        except TimeoutError:
            raise trouble from None
        pause_s = min(pause_s * 2, 0.5)


async def last_message(broker: Broker, stream: str, subject: str) -> StoredMessage | None:
    """The last message on one subject (no wildcards), by direct get."""
    msg = await broker.request(f"{API}.DIRECT.GET.{stream}.{subject}")
    status = _status(msg)
    if status == "404":
        return None
    if status is not None:
        raise ApiError(int(status), 0, _description(msg))
    return _stored(msg)


async def last_messages(
    broker: Broker, stream: str, filters: Sequence[str], *, first_seq: int = 1
) -> list[StoredMessage]:
    """The last message of every subject that matches, 1,024 at most (the server's limit), but for those
    before ``first_seq``; all as of one moment."""
    query = {"multi_last": list(filters), "batch": 1024, "seq": first_seq}
    found, _ = await _batch(broker, stream, msgspec.json.encode(query), dropped="Message Not Found")
    return found


async def messages(broker: Broker, stream: str, subject_filter: str) -> AsyncIterator[StoredMessage]:
    """Every stored message that matches, with headers, in stream order, in batches of 1,000."""
    first_seq, more = 1, True
    while more:
        found, more = await next_messages(broker, stream, subject_filter, first_seq, BATCH)
        for message in found:
            yield message
        if found:
            first_seq = found[-1].seq + 1


async def next_messages(
    broker: Broker, stream: str, subject_filter: str, first_seq: int, batch: int
) -> tuple[list[StoredMessage], bool]:
    """At most ``batch`` messages from ``first_seq`` on, and whether there are more behind them."""
    query = {"seq": max(1, first_seq), "next_by_subj": subject_filter, "batch": batch}
    return await _batch(broker, stream, msgspec.json.encode(query))


async def messages_since(
    broker: Broker, stream: str, subject_filter: str, since_unix_ms: float, batch: int
) -> tuple[list[StoredMessage], bool]:
    """As ``next_messages``, of what was stored at this time and later."""
    since = datetime.fromtimestamp(since_unix_ms / 1000, UTC).isoformat()
    query = {"start_time": since, "next_by_subj": subject_filter, "batch": batch}
    return await _batch(broker, stream, msgspec.json.encode(query))


class _Purged(msgspec.Struct, frozen=True):
    purged: int = 0


async def purge(broker: Broker, stream: str, subject_filter: str, *, before_seq: int | None = None) -> int:
    """Delete what matches, all of it or what stands before a sequence; how many that were."""
    query: dict[str, object] = {"filter": subject_filter}
    if before_seq is not None:
        query["seq"] = before_seq
    return (await call(broker, f"STREAM.PURGE.{stream}", msgspec.json.encode(query), _Purged)).purged


async def _batch(
    broker: Broker, stream: str, payload: bytes, *, dropped: str | None = None
) -> tuple[list[StoredMessage], bool]:
    """``dropped``: how the server describes a message that went while it answered; any other 404 says that
    nothing matches."""
    answers = await broker.request_many(f"{API}.DIRECT.GET.{stream}", payload, is_last=_ends_batch)
    end = answers.pop()
    status = _status(end)
    if status == "404":
        if _description(end) == dropped:
            raise ApiError(503, 0, _description(end))
        return [], False
    if status != "204":
        raise ApiError(int(status or 500), 0, _description(end))
    pending = int((end.headers or {}).get("Nats-Num-Pending", "0"))
    return [_stored(msg) for msg in answers], bool(answers) and pending > 0


def _ends_batch(msg: Msg) -> bool:
    return msg.headers is not None and "Status" in msg.headers


def _status(msg: Msg) -> str | None:
    return msg.headers.get("Status") if msg.headers else None


def _description(msg: Msg) -> str:
    return (msg.headers or {}).get("Description", "unknown")


def stamp_unix_ms(stamp: str) -> float:
    """Of the server's time stamp, to the microsecond; the same number as a consumer's ``Delivery`` tells."""
    return round(datetime.fromisoformat(stamp).timestamp() * 1_000_000) / 1000


def _stored(msg: Msg) -> StoredMessage:
    headers = msg.headers or {}
    return StoredMessage(
        subject=headers["Nats-Subject"],
        seq=int(headers["Nats-Sequence"]),
        stored_unix_ms=stamp_unix_ms(headers["Nats-Time-Stamp"]),
        data=msg.data,
        headers={name: value for name, value in headers.items() if name not in _WIRE_HEADERS},
    )
