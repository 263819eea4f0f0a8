"""Answers the NATS services protocol (ADR-32 of the NATS project), so that `nats service ls`, `info`, `stats`
and `ping` find every process and say what it is and how it fares.

Nine subscriptions that are silent until somebody asks; the figures are read at that moment. nats-py's own
``nats.micro`` ties what it tells to handlers of endpoints that it serves itself, which a process that lives
off streams has none of. Must not know what a process does.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import msgspec
import nats.errors
from nats.aio.msg import Msg
from prometheus_client import Counter, Gauge, Histogram

from broker.connection import Broker
from broker.metrics import RequestMetrics

log = logging.getLogger(__name__)

PREFIX = "$SRV"
_TYPE = "io.nats.micro.v1.{}_response"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a process serves, and the subject by which it does."""

    name: str
    subject: str
    queue_group: str = ""
    metadata: dict[str, str] = {}


class EndpointStats(msgspec.Struct, frozen=True, kw_only=True):
    """Since the process started. Times are nanoseconds. ``data``: anything that JSON can say."""

    name: str
    subject: str
    queue_group: str = ""
    num_requests: int = 0
    num_errors: int = 0
    last_error: str = ""
    processing_time: int = 0
    average_processing_time: int = 0
    data: dict[str, object] = {}


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """``name``: of the kind of process, ``id``: of this one; both are tokens of subjects.
    ``version`` is SemVer."""

    name: str
    id: str
    version: str
    description: str
    metadata: dict[str, str]
    endpoints: tuple[Endpoint, ...]


class _Identity(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    id: str
    version: str
    metadata: dict[str, str]
    type: str


class _Info(_Identity, frozen=True, kw_only=True):
    description: str
    endpoints: tuple[Endpoint, ...]


class _Stats(_Identity, frozen=True, kw_only=True):
    started: str
    endpoints: Sequence[EndpointStats]


async def answer_services(
    broker: Broker, service: Service, stats: Callable[[], Sequence[EndpointStats]]
) -> None:
    """From now on, for as long as the connection lives."""
    name, id_, version, metadata = service.name, service.id, service.version, service.metadata
    started = datetime.now(UTC).isoformat().replace("+00:00", "Z")

    def ping() -> _Identity:
        return _Identity(name=name, id=id_, version=version, metadata=metadata, type=_TYPE.format("ping"))

    def info() -> _Info:
        return _Info(
            name=name,
            id=id_,
            version=version,
            metadata=metadata,
            type=_TYPE.format("info"),
            description=service.description,
            endpoints=service.endpoints,
        )

    def figures() -> _Stats:
        return _Stats(
            name=name,
            id=id_,
            version=version,
            metadata=metadata,
            type=_TYPE.format("stats"),
            started=started,
            endpoints=stats(),
        )

    for verb, say in (("PING", ping), ("INFO", info), ("STATS", figures)):
        answer = _answering(broker, say)
        for subject in (verb, f"{verb}.{name}", f"{verb}.{name}.{id_}"):
            await broker.nc.subscribe(f"{PREFIX}.{subject}", cb=answer)


def _answering(broker: Broker, say: Callable[[], _Identity]) -> Callable[[Msg], Awaitable[None]]:
    async def answer(msg: Msg) -> None:
        if not msg.reply:
            return
        try:
            await broker.nc.publish(msg.reply, msgspec.json.encode(say()))
        except nats.errors.Error as error:
            log.debug("%s was not answered: %s", msg.subject, error)

    return answer


def endpoint_stats(
    endpoint: Endpoint, side: RequestMetrics, *, failures: Sequence[str], data: dict[str, object]
) -> EndpointStats:
    """Of an endpoint whose requests ``side`` counts. ``failures``: the outcomes that are errors."""
    ended = _samples(side.requests, "_total")
    spent_s = sum(value for _, value in _samples(side.end_to_end_s, "_sum"))
    timed = int(sum(value for _, value in _samples(side.end_to_end_s, "_count")))
    return EndpointStats(
        name=endpoint.name,
        subject=endpoint.subject,
        queue_group=endpoint.queue_group,
        num_requests=int(sum(value for _, value in ended)),
        num_errors=int(sum(value for labels, value in ended if labels["outcome"] in failures)),
        processing_time=int(spent_s * 1e9),
        average_processing_time=int(spent_s * 1e9 / timed) if timed else 0,
        data=data,
    )


def total(gauge: Gauge) -> int:
    return int(sum(value for _, value in _samples(gauge, "")))


def _samples(metric: Counter | Gauge | Histogram, suffix: str) -> list[tuple[dict[str, str], float]]:
    """Over all label sets."""
    return [
        (sample.labels, sample.value)
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix)
    ]
