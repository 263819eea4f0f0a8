"""What ``headrace top`` asks of NATS, one function a question: a bounded number of requests each. Must not
know what is made of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from broker import jetstream, subjects
from broker.connection import Broker, unix_ms
from broker.history import read_headers
from broker.jetstream import StoredMessage
from deploy.top.job_book import Reach, SeenJob
from deploy.top.snapshot import GatewayRow, StreamRow
from schemas import codec
from schemas.job import DeadLetter
from schemas.presence import WorkerCard

MAX_PAGES = 8  # of consumers, 256 each
MAX_CARDS = 1000
MAX_NEW_JOBS = 5_000  # headers read at one look
LETTERS = 10

_OPERATION = "KV-Operation"
_WORKER_CARDS = f"$KV.{subjects.WORKERS_KV}."


class _Sequences(msgspec.Struct, frozen=True):
    consumer_seq: int = 0
    stream_seq: int = 0


class _ConsumerConfig(msgspec.Struct, frozen=True):
    filter_subject: str = ""


class ConsumerInfo(msgspec.Struct, frozen=True):
    name: str
    config: _ConsumerConfig
    delivered: _Sequences = _Sequences()
    ack_floor: _Sequences = _Sequences()
    num_pending: int = 0
    num_ack_pending: int = 0
    num_waiting: int = 0

    @property
    def reach(self) -> Reach:
        return Reach(self.ack_floor.stream_seq, self.delivered.stream_seq, self.num_ack_pending)

    @property
    def busy(self) -> bool:
        return self.num_pending + self.num_ack_pending > 0


class _ConsumerPage(msgspec.Struct, frozen=True):
    total: int = 0
    consumers: list[ConsumerInfo] | None = None


class _StreamLimits(msgspec.Struct, frozen=True):
    max_bytes: int = -1
    max_msgs: int = -1


class StreamState(msgspec.Struct, frozen=True):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    first_ts: str = ""
    last_seq: int = 0


class StreamInfo(msgspec.Struct, frozen=True):
    config: _StreamLimits
    state: StreamState

    def row(self, name: str) -> StreamRow:
        limits, state = self.config, self.state
        parts = [
            have / limit
            for have, limit in ((state.bytes, limits.max_bytes), (state.messages, limits.max_msgs))
            if limit > 0
        ]
        oldest_s = None
        if state.messages:
            oldest_s = max(0.0, (unix_ms() - _unix_ms_of(state.first_ts)) / 1000)
        return StreamRow(
            stream=name,
            messages=state.messages,
            bytes=state.bytes,
            filled=max(parts, default=0.0),
            oldest_s=oldest_s,
        )


def _unix_ms_of(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp() * 1000


async def stream_info(broker: Broker, stream: str) -> StreamInfo:
    return await jetstream.call(broker, f"STREAM.INFO.{stream}", b"", StreamInfo)


async def consumers(broker: Broker, stream: str) -> list[ConsumerInfo]:
    found: list[ConsumerInfo] = []
    for _ in range(MAX_PAGES):
        payload = msgspec.json.encode({"offset": len(found)})
        page = await jetstream.call(broker, f"CONSUMER.LIST.{stream}", payload, _ConsumerPage)
        found += page.consumers or []
        if not page.consumers or len(found) >= page.total:
            break
    return found


async def gateways(broker: Broker) -> tuple[GatewayRow, ...]:
    """Each reads its reply logs by a consumer of its own; an old one may linger beside the new."""
    rows: dict[str, GatewayRow] = {}
    for info in await consumers(broker, subjects.REPLIES):
        kind, _, rest = info.name.partition("-")
        if kind != "tail":
            continue
        gateway = rest.rpartition("-")[0]
        row = GatewayRow(gateway=gateway, listening=info.num_waiting > 0, unread=info.num_pending)
        if gateway not in rows or row.listening:
            rows[gateway] = row
    return tuple(rows[gateway] for gateway in sorted(rows))


async def worker_cards(broker: Broker) -> list[tuple[WorkerCard, float]]:
    """Each with the seconds since it was stored."""
    stream = f"KV_{subjects.WORKERS_KV}"
    found, _ = await jetstream.next_messages(broker, stream, f"{_WORKER_CARDS}>", 1, MAX_CARDS)
    cards = []
    for item in found:
        if _OPERATION in item.headers:
            continue
        try:
            card = codec.decode_worker_card(item.data)
        except msgspec.DecodeError:  # of another version; gateways count and log it
            continue
        cards.append((card, max(0.0, (unix_ms() - item.stored_unix_ms) / 1000)))
    return cards


async def jobs_from(broker: Broker, first_seq: int) -> list[SeenJob]:
    """Those in the queues; held ones wait for nobody."""
    stored = await read_headers(broker, subjects.JOBS, subjects.JOBS_SUBJECTS, first_seq=first_seq)
    return [job for item in stored if (job := _seen(item)) is not None]


def _seen(item: StoredMessage) -> SeenJob | None:
    job = subjects.parse_job(item.subject)
    if job.lane == "held":
        return None
    return SeenJob(
        seq=item.seq,
        queue=job.consumer,
        response=job.response,
        tenant=item.headers.get("Hr-Tenant", "?"),
        model=item.headers.get("Hr-Model", job.model),
        over=job.lane == "over",
        reply=subjects.reply_of_job(item.headers, job.response),
        stored_unix_ms=item.stored_unix_ms,
    )


async def last_of_logs(broker: Broker, jobs: Sequence[SeenJob]) -> list[StoredMessage]:
    """The last token message and the last fence of each log."""
    filters = [f"{job.reply}.{part}" for job in jobs for part in ("t", "f")]
    return await jetstream.last_messages(broker, subjects.REPLIES, filters) if filters else []


async def dead_letters(broker: Broker, last_seq: int) -> list[DeadLetter]:
    """The newest, oldest first."""
    first_seq = max(1, last_seq - LETTERS + 1)
    found, _ = await jetstream.next_messages(
        broker, subjects.DEAD, subjects.DEAD_SUBJECTS, first_seq, LETTERS
    )
    letters = []
    for item in found:
        try:
            letters.append(codec.decode_dead_letter(item.data))
        except msgspec.DecodeError:  # of another version: `headrace decode` reads it
            continue
    return letters
