"""The streams, buckets and consumers of Headrace: declared here, applied idempotently by every process.

What each setting is for stands in TOPOLOGY.md. What an operator may change on the server without harm
(limits, descriptions) is brought back to the configuration; what would break a guarantee (another
storage, retention or subject space) is refused by naming the field. Must not know what messages mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from broker import jetstream, subjects
from broker.connection import Broker, NoAnswer
from broker.jetstream import ApiError
from schemas.config import Nats
from schemas.ids import ModelToken
from schemas.job import LANES, PRIORITIES, Lane, Priority

NS = 1_000_000_000
DUPLICATE_WINDOW_S = 120
PRESENCE_MAX_AGE_S = 60  # readers call a worker dead long before; this only sweeps the bucket
DEAD_MAX_AGE_S = 7 * 24 * 3600
DEAD_MAX_BYTES = 1 << 30
MAX_DEADLINE_S = 3600  # no job older than this is worth running: where a re-created consumer begins
CONSUMER_INACTIVE_S = 2 * 24 * 3600  # a model without workers: longer than any job of it is kept by default
MAX_WAITING_PULLS = 4096  # six pulls a worker; the default of 512 is reached by 85 workers
APPLY_LIMIT_S = 30.0

QUEUES: tuple[tuple[Priority, Lane], ...] = tuple(
    (priority, lane) for lane in LANES for priority in PRIORITIES
)


class TopologyError(Exception):
    """The server cannot hold what Headrace needs. The message is for the operator."""


class TopologyMismatch(TopologyError):
    """A stream or consumer of our name exists and is not ours."""

    def __init__(self, stream: str, field: str, have: object, want: object) -> None:
        self.stream, self.field, self.have, self.want = stream, field, have, want
        super().__init__(
            f"stream {stream}: {field} is {have!r}, Headrace needs {want!r}; "
            "rename or remove that stream, or use another NATS account"
        )


class Republish(msgspec.Struct, frozen=True):
    src: str
    dest: str


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of nats-server's StreamConfig that Headrace sets. Durations are nanoseconds."""

    name: str
    description: str
    subjects: tuple[str, ...]
    max_bytes: int = -1
    max_msgs: int = -1
    max_age: int
    max_msgs_per_subject: int = -1
    discard: str = msgspec.field(default="")
    storage: str = msgspec.field(default="")
    retention: str = msgspec.field(default="")
    num_replicas: int = 0
    duplicate_window: int
    allow_direct: bool = False
    allow_rollup_hdrs: bool = False
    deny_delete: bool = False
    republish: Republish | None = None
    metadata: dict[str, str]


# A difference here would change what is stored or who sees it; everything else is brought back by update.
_MUST_MATCH = ("subjects", "storage", "retention", "discard", "deny_delete")


_CONSUMER_LIMITS = (
    "description",
    "ack_wait",
    "max_deliver",
    "max_ack_pending",
    "max_waiting",
    "inactive_threshold",
)


class ConsumerConfig(msgspec.Struct, frozen=True, kw_only=True):
    durable_name: str
    name: str
    description: str
    filter_subject: str
    deliver_policy: str
    opt_start_time: str
    ack_policy: str
    ack_wait: int
    max_deliver: int
    max_ack_pending: int
    max_waiting: int
    inactive_threshold: int
    replay_policy: str
    metadata: dict[str, str]


class _StreamInfo(msgspec.Struct, frozen=True):
    config: dict[str, Any]  # the server's own JSON: kept whole, so that an update loses no field of it


class _ConsumerInfo(msgspec.Struct, frozen=True):
    config: dict[str, Any]


def _stream(
    config: Nats,
    name: str,
    description: str,
    stream_subjects: tuple[str, ...],
    *,
    max_age_s: float,
    max_bytes: int = -1,
    max_msgs: int = -1,
    republish: Republish | None = None,
    grammar: str,
    headers: str,
) -> StreamConfig:
    """``grammar``, ``headers``: what `nats stream info` shows of the subjects and headers in it."""
    return StreamConfig(
        name=name,
        description=description,
        subjects=stream_subjects,
        max_age=int(max_age_s * NS),
        max_bytes=max_bytes,
        max_msgs=max_msgs,
        discard="old",
        storage="file",
        retention="limits",
        num_replicas=config.replicas,
        duplicate_window=int(min(DUPLICATE_WINDOW_S, max_age_s) * NS),
        allow_direct=True,
        republish=republish,
        metadata={
            "headrace": "1",
            "headrace-subjects": grammar,
            "headrace-headers": headers,
            "headrace-payload": "MessagePack, read it with --translate 'headrace decode'",
        },
    )


def _bucket(
    config: Nats, stream: str, description: str, prefix: tuple[str, ...], *, max_age_s: float, history: int
) -> StreamConfig:
    """What `nats kv` and `nats object` expect of a bucket's stream (ADR-8, ADR-20)."""
    return StreamConfig(
        name=stream,
        description=description,
        subjects=prefix,
        max_age=int(max_age_s * NS),
        max_msgs_per_subject=history,
        discard="new",
        storage="file",
        retention="limits",
        num_replicas=config.replicas,
        duplicate_window=int(min(DUPLICATE_WINDOW_S, max_age_s or DUPLICATE_WINDOW_S) * NS),
        allow_direct=True,
        allow_rollup_hdrs=True,
        deny_delete=stream.startswith("KV_"),
        metadata={"headrace": "1"},
    )


def streams(config: Nats) -> tuple[StreamConfig, ...]:
    kv, objects = "$KV.{}.>", "$O.{}.{}.>"
    workers, keys, tokenizers = subjects.WORKERS_KV, subjects.KEYS_KV, subjects.TOKENIZERS_BUCKET
    return (
        _stream(
            config,
            subjects.JOBS,
            "Headrace: accepted requests, one a response; kept after their ack for look-up and replay",
            (subjects.JOBS_SUBJECTS,),
            max_age_s=config.jobs_max_age_s,
            max_bytes=config.jobs_max_bytes,
            max_msgs=config.jobs_max_messages,
            grammar="hr.job.<model>.<class>.<fair, over or held>.<response>",
            headers="Hr-Response Hr-Tenant Hr-Session Hr-Gateway Hr-Model Hr-Class Hr-Deadline "
            "Hr-Prompt-Tokens Hr-Codec; of some Hr-Request-Id Hr-Replay-Of traceparent",
        ),
        _stream(
            config,
            subjects.REPLIES,
            "Headrace: the reply log of every response, token ids on .t, fences on .f",
            (subjects.REPLIES_SUBJECTS,),
            max_age_s=config.replies_max_age_s,
            max_bytes=config.replies_max_bytes,
            republish=Republish(src=subjects.REPLIES_SUBJECTS, dest=f"{subjects.LIVE_PREFIX}>"),
            grammar="hr.reply.<gateway>.<response>.<session>.<t: tokens and ends, f: fences and closings>",
            headers="none on tokens, which would double what they cost; Nats-Msg-Id on the others",
        ),
        _stream(
            config,
            subjects.DEAD,
            "Headrace: dead letters, jobs that no worker could finish",
            (subjects.DEAD_SUBJECTS,),
            max_age_s=DEAD_MAX_AGE_S,
            max_bytes=DEAD_MAX_BYTES,
            grammar="hr.dead.<model>.<response>",
            headers="Hr-Response Hr-Code",
        ),
        _bucket(
            config,
            f"KV_{workers}",
            "Headrace: workers, their load and limits",
            (kv.format(workers),),
            max_age_s=PRESENCE_MAX_AGE_S,
            history=1,
        ),
        _bucket(config, f"KV_{keys}", "Headrace: API keys", (kv.format(keys),), max_age_s=0, history=1),
        _bucket(
            config,
            f"OBJ_{tokenizers}",
            "Headrace: tokenizer files by model revision",
            (objects.format(tokenizers, "C"), objects.format(tokenizers, "M")),
            max_age_s=0,
            history=-1,
        ),
    )


async def apply(broker: Broker) -> None:
    """Create what is missing, update what drifted. Raises ``TopologyMismatch``, ``TopologyError``, and
    ``NoAnswer`` when JetStream does not answer for 30 s (it needs a moment after a server start)."""
    for config in streams(broker.config):
        await _patiently(partial(_apply_stream, broker, config))


async def ensure_job_consumers(broker: Broker, model: ModelToken, *, limit_s: float = APPLY_LIMIT_S) -> None:
    """The six durable pull consumers which all workers of a model share. Idempotent; a deleted one is made
    again, beginning one deadline ago: older jobs have ended, and their logs may be gone already. The server
    removes them two days after the last pull. Raises ``TopologyError``, at once where the stream is gone,
    and ``NoAnswer`` or a passing ``ApiError`` after ``limit_s``."""
    for priority, lane in QUEUES:
        try:
            await _patiently(partial(_ensure_consumer, broker, model, priority, lane), limit_s)
        except ApiError as error:
            if error.passing:
                raise
            name = subjects.job_consumer(model, priority, lane)
            raise TopologyError(
                f"stream {subjects.JOBS}, consumer {name}: the server refuses it: {error}"
            ) from None


async def _patiently(step: Callable[[], Awaitable[None]], limit_s: float = APPLY_LIMIT_S) -> None:
    """JetStream comes up after the server accepts connections: until then nobody answers, or 503."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + limit_s
    while True:
        try:
            await step()
        except (NoAnswer, ApiError) as error:
            if (isinstance(error, ApiError) and not error.passing) or loop.time() > give_up:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def _apply_stream(broker: Broker, want: StreamConfig) -> None:
    have = await _stream_config(broker, want.name)
    if have is None:
        try:
            payload = msgspec.json.encode(want)
            await jetstream.call(broker, f"STREAM.CREATE.{want.name}", payload, _StreamInfo)
        except ApiError as error:
            if error.err_code != jetstream.STREAM_NAME_IN_USE:
                raise _explained(want, error) from None
            have = await _stream_config(broker, want.name)  # another process was first
    if have is not None:
        await _update_stream(broker, have, want)


async def _stream_config(broker: Broker, name: str) -> dict[str, Any] | None:
    try:
        return (await jetstream.call(broker, f"STREAM.INFO.{name}", b"", _StreamInfo)).config
    except ApiError as error:
        if error.err_code != jetstream.STREAM_NOT_FOUND:
            raise
        return None


async def _update_stream(broker: Broker, have: dict[str, Any], want: StreamConfig) -> None:
    wanted: dict[str, Any] = msgspec.to_builtins(want)
    for field in _MUST_MATCH:
        if _comparable(have.get(field, False)) != _comparable(wanted.get(field, False)):
            raise TopologyMismatch(want.name, field, have.get(field), wanted.get(field))
    for field in ("mirror", "sources", "sealed"):
        if have.get(field):
            raise TopologyMismatch(want.name, field, have[field], None)
    changed = {**have, **wanted, "metadata": {**have.get("metadata", {}), **want.metadata}}
    try:
        await jetstream.call(broker, f"STREAM.UPDATE.{want.name}", msgspec.json.encode(changed), _StreamInfo)
    except ApiError as error:
        raise _explained(want, error) from None


def _comparable(value: Any) -> Any:
    return sorted(value) if isinstance(value, (list, tuple)) else value


def _explained(want: StreamConfig, error: ApiError) -> Exception:
    if error.passing:
        return error
    if error.err_code == jetstream.NO_STORAGE:
        key = {subjects.JOBS: "jobs_max_bytes", subjects.REPLIES: "replies_max_bytes"}.get(
            want.name, "max_bytes"
        )
        return TopologyError(
            f"stream {want.name} reserves {want.max_bytes} bytes and the server has no room for them: "
            f"lower nats.{key}, or raise max_file_store in the server's jetstream block"
        )
    return TopologyError(f"stream {want.name}: the server refuses it: {error}")


async def _ensure_consumer(broker: Broker, model: ModelToken, priority: Priority, lane: Lane) -> None:
    name = subjects.job_consumer(model, priority, lane)
    want = ConsumerConfig(
        durable_name=name,
        name=name,
        description=f"Headrace: {priority} jobs of {model}, {lane} share",
        filter_subject=subjects.job_filter(model, priority, lane),
        deliver_policy="by_start_time",
        opt_start_time=(datetime.now(UTC) - timedelta(seconds=MAX_DEADLINE_S))
        .isoformat()
        .replace("+00:00", "Z"),
        ack_policy="explicit",
        ack_wait=int(broker.config.ack_wait_s * NS),
        max_deliver=-1,
        max_ack_pending=-1,
        max_waiting=MAX_WAITING_PULLS,
        inactive_threshold=int(CONSUMER_INACTIVE_S * NS),
        replay_policy="instant",
        metadata={"headrace": "1"},
    )
    try:
        info = await jetstream.call(broker, f"CONSUMER.INFO.{subjects.JOBS}.{name}", b"", _ConsumerInfo)
    except ApiError as error:
        if error.err_code != jetstream.CONSUMER_NOT_FOUND:
            raise
        try:
            await _put_consumer(broker, want, msgspec.to_builtins(want), "create")
        except ApiError as refused:
            if refused.err_code != jetstream.CONSUMER_EXISTS:  # another worker was faster
                raise
        return
    have = info.config
    wanted: dict[str, Any] = msgspec.to_builtins(want)
    for field in ("filter_subject", "ack_policy", "replay_policy"):
        if have.get(field) != wanted[field]:
            raise TopologyMismatch(f"{subjects.JOBS} > {name}", field, have.get(field), wanted[field])
    drifted = {f: wanted[f] for f in _CONSUMER_LIMITS if have.get(f) != wanted[f]}
    if drifted:
        await _put_consumer(broker, want, {**have, **drifted}, "update")


async def _put_consumer(broker: Broker, want: ConsumerConfig, config: dict[str, Any], action: str) -> None:
    payload = msgspec.json.encode({"stream_name": subjects.JOBS, "config": config, "action": action})
    subject = f"CONSUMER.CREATE.{subjects.JOBS}.{want.name}.{want.filter_subject}"
    await jetstream.call(broker, subject, payload, _ConsumerInfo)
