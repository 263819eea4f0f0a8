"""What ``headrace top`` knows at one moment; ``--json`` prints it as it stands here. Pure data: no I/O, no
screen. Times of the day are unix milliseconds, durations are seconds."""

from __future__ import annotations

import msgspec


class GatewayRow(msgspec.Struct, frozen=True, kw_only=True):
    """``unread``: messages of its responses' logs that it has not read yet. ``listening``: it asks for
    more."""

    gateway: str
    listening: bool
    unread: int


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """``state``: ready, draining, or silent for three of its announcements. ``waiting``: in its engine."""

    worker: str
    model: str
    host: str
    pid: int
    engine: str
    version: str
    state: str
    seen_s: float
    up_s: float
    slots: int
    running: int
    waiting: int
    tokens_per_s: float
    kv_cache_usage: float


class QueueRow(msgspec.Struct, frozen=True, kw_only=True):
    """``running``: pulled and not acked. ``pulled_per_s``: between the last two looks. ``wait_s``: until a
    job that came now would start; null where nothing waits or no rate is known yet."""

    model: str
    priority: str
    lane: str
    waiting: int
    running: int
    oldest_s: float | None
    pulled_per_s: float
    wait_s: float | None


class TenantRow(msgspec.Struct, frozen=True, kw_only=True):
    """``over``: of those waiting, above its share."""

    tenant: str
    waiting: int
    over: int
    running: int


class FailureRow(msgspec.Struct, frozen=True, kw_only=True):
    """``dead``: its job lies in DEAD. A client's own cancel is no failure."""

    unix_ms: int
    code: str
    dead: bool
    model: str
    tenant: str
    response: str
    message: str


class StreamRow(msgspec.Struct, frozen=True, kw_only=True):
    """``filled``: of the limit it is nearest to, bytes or messages, 0 to 1; 0 without limits."""

    stream: str
    messages: int
    bytes: int
    filled: float
    oldest_s: float | None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """``error``: why there is nothing newer; empty while the broker answers. ``jobs_counted``: false where
    more jobs wait or run than are followed: the tenants' numbers are then of the newest only."""

    unix_ms: int
    broker: str
    connected: bool
    error: str = ""
    answer_ms: float = 0.0
    gateways: tuple[GatewayRow, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    queues: tuple[QueueRow, ...] = ()
    tenants: tuple[TenantRow, ...] = ()
    failures: tuple[FailureRow, ...] = ()
    streams: tuple[StreamRow, ...] = ()
    jobs_counted: bool = True
