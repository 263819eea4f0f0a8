"""A snapshot as lines of text for a terminal of any size: what does not fit is counted, never silently left
out. Pure: must not know NATS or the terminal itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.top.snapshot import (
    FailureRow,
    GatewayRow,
    QueueRow,
    Snapshot,
    StreamRow,
    TenantRow,
    WorkerRow,
)

WIDE = 110  # columns from which on there is room for what is nice to know
_FULL = 0.8  # of a limit: shown as trouble


@dataclass(frozen=True, slots=True)
class Column:
    """``grows``: it takes what others leave, and is cut where that is too little. ``wide``: only shown where
    there is room."""

    title: str
    right: bool = False
    grows: bool = False
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """``least``: rows it is given before any other is given more; ``nothing`` stands where it has none."""

    columns: tuple[Column, ...]
    rows: Sequence[tuple[Text, ...]]
    least: int
    nothing: str


def screen(snapshot: Snapshot, width: int, height: int | None) -> RenderableType:
    """``height`` None: all of it."""
    sections = _sections(snapshot)
    head = _head(snapshot, width)
    room = None if height is None else height - len(head) - len(sections)
    shown = _share([len(section.rows) or 1 for section in sections], [s.least for s in sections], room)
    tables = [_table(section, rows, width) for section, rows in zip(sections, shown, strict=True) if rows > 0]
    return Group(*head, *tables)


def _share(wanted: Sequence[int], least: Sequence[int], room: int | None) -> list[int]:
    """Rows for each section: first what each needs least, then in turns until the room is used."""
    if room is None:
        return list(wanted)
    given = [min(want, few) for want, few in zip(wanted, least, strict=True)]
    while sum(given) > room and any(given):  # the last sections are the first to go
        last = max(n for n, rows in enumerate(given) if rows)
        given[last] -= 1
    while sum(given) < room and given != list(wanted):
        for n, want in enumerate(wanted):
            if given[n] < want and sum(given) < room:
                given[n] += 1
    return given


def _table(section: Section, rows: int, width: int) -> Table:
    grows = any(column.grows for column in section.columns)
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold cyan",
        width=width if grows else None,
    )
    kept = [n for n, column in enumerate(section.columns) if width >= WIDE or not column.wide]
    for n in kept:
        column = section.columns[n]
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if column.grows else None,
        )
    hidden = len(section.rows) - rows
    visible = section.rows[: rows - 1] if hidden > 0 else section.rows
    for row in visible:
        table.add_row(*(row[n] for n in kept))
    if not section.rows:
        table.add_row(Text(section.nothing, style="dim"))
    if hidden > 0:
        table.add_row(Text(f"… {hidden + 1} more", style="dim"))
    return table


# -- the first lines ------------------------------------------------------------------------------------


def _head(snapshot: Snapshot, width: int) -> list[Text]:
    at = datetime.fromtimestamp(snapshot.unix_ms / 1000).strftime("%H:%M:%S")
    state = _state(snapshot)
    title = _joined([Text("headrace top", style="bold"), Text(snapshot.broker), state, Text(at)])
    lines = [title, _totals(snapshot), _streams(snapshot.streams)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines


def _state(snapshot: Snapshot) -> Text:
    if not snapshot.connected:
        return Text("DISCONNECTED, showing the last look", style="bold red")
    if snapshot.error:
        return Text(f"no answer: {snapshot.error}", style="bold red")
    return Text(f"connected, answers in {snapshot.answer_ms:.1f} ms", style="green")


def _totals(snapshot: Snapshot) -> Text:
    alive = [worker for worker in snapshot.workers if worker.state != "silent"]
    slots = sum(worker.slots for worker in alive)
    waiting = sum(queue.waiting for queue in snapshot.queues)
    return _joined(
        [
            Text(f"{len([g for g in snapshot.gateways if g.listening])} gateways"),
            Text(f"{len(alive)} workers", style="" if alive else "bold red"),
            Text(f"{sum(worker.running for worker in alive)}/{slots} slots in use"),
            Text(f"{_count(waiting)} jobs waiting", style="yellow" if waiting else ""),
            Text(f"{sum(worker.tokens_per_s for worker in alive):,.0f} tokens/s"),
        ]
    )


def _streams(streams: Iterable[StreamRow]) -> Text:
    parts = []
    for row in streams:
        filled = f", {row.filled:.0%} full" if row.filled >= 0.005 else ""
        text = f"{row.stream} {_count(row.messages)} ({_size(row.bytes)}{filled})"
        dead = row.stream == "DEAD" and row.messages
        parts.append(Text(text, style="bold red" if row.filled > _FULL else "yellow" if dead else ""))
    return _joined(parts)


def _joined(parts: Sequence[Text]) -> Text:
    return Text(" · ", style="dim").join(parts)


# -- sections -------------------------------------------------------------------------------------------


def _sections(snapshot: Snapshot) -> list[Section]:
    counted = "" if snapshot.jobs_counted else " (of the newest)"
    return [
        Section(
            _QUEUE, [_queue(row) for row in _worth_showing(snapshot.queues)], 4, "no queues: no worker yet"
        ),
        Section(_WORKER, [_worker(row) for row in snapshot.workers], 3, "none"),
        Section(
            (Column(f"TENANT{counted}"), *_TENANT),
            [_tenant(row) for row in snapshot.tenants],
            3,
            "nobody has a job",
        ),
        Section(_FAILURE, [_failure(row) for row in snapshot.failures], 3, "none"),
        Section(_GATEWAY, [_gateway(row) for row in snapshot.gateways], 1, "none"),
    ]


_QUEUE = (
    Column("QUEUE", grows=True),
    Column("CLASS"),
    Column("LANE"),
    Column("WAITING", right=True),
    Column("OLDEST", right=True),
    Column("WAIT", right=True),
    Column("PULLED/s", right=True),
    Column("RUNNING", right=True),
)


def _worth_showing(rows: Sequence[QueueRow]) -> list[QueueRow]:
    """Of a model's idle queues only its first, so that the model is seen."""
    busy = {row.model for row in rows if row.waiting or row.running}
    first = {row.model: row for row in reversed(rows)}
    return [
        row
        for row in rows
        if row.waiting or row.running or (row.model not in busy and row is first[row.model])
    ]


def _queue(row: QueueRow) -> tuple[Text, ...]:
    return (
        Text(row.model),
        Text(row.priority),
        Text(row.lane, style="yellow" if row.lane == "over" else ""),
        Text(_count(row.waiting), style="yellow" if row.waiting else "dim"),
        _duration(row.oldest_s),
        _duration(row.wait_s),
        Text(f"{row.pulled_per_s:.1f}", style="" if row.pulled_per_s else "dim"),
        Text(_count(row.running), style="" if row.running else "dim"),
    )


_WORKER = (
    Column("WORKER"),
    Column("MODEL", grows=True),
    Column("HOST", wide=True),
    Column("PID", right=True, wide=True),
    Column("ENGINE", wide=True),
    Column("STATE"),
    Column("SLOTS", right=True),
    Column("WAITS", right=True),
    Column("TOKENS/s", right=True),
    Column("KV CACHE", right=True),
    Column("UP", right=True, wide=True),
    Column("SEEN", right=True),
)


def _worker(row: WorkerRow) -> tuple[Text, ...]:
    full = row.slots > 0 and row.running >= row.slots
    return (
        Text(row.worker),
        Text(row.model),
        Text(row.host),
        Text(str(row.pid)),
        Text(row.engine),
        Text(row.state, style={"ready": "green", "silent": "bold red"}.get(row.state, "yellow")),
        Text(f"{row.running}/{row.slots}", style="yellow" if full else ""),
        Text(str(row.waiting), style="yellow" if row.waiting else "dim"),
        Text(f"{row.tokens_per_s:,.0f}"),
        Text(f"{row.kv_cache_usage:.0%}", style="yellow" if row.kv_cache_usage > _FULL else ""),
        _duration(row.up_s),
        _duration(row.seen_s),
    )


_TENANT = (
    Column("WAITING", right=True),
    Column("ABOVE SHARE", right=True),
    Column("RUNNING", right=True),
)


def _tenant(row: TenantRow) -> tuple[Text, ...]:
    return (
        Text(row.tenant),
        Text(_count(row.waiting), style="yellow" if row.waiting else "dim"),
        Text(_count(row.over), style="yellow" if row.over else "dim"),
        Text(_count(row.running)),
    )


_FAILURE = (
    Column("FAILED"),
    Column("CODE"),
    Column("MODEL", wide=True),
    Column("TENANT"),
    Column("RESPONSE"),
    Column("MESSAGE", grows=True),
)


def _failure(row: FailureRow) -> tuple[Text, ...]:
    at = datetime.fromtimestamp(row.unix_ms / 1000).strftime("%H:%M:%S")
    return (
        Text(at),
        Text(row.code + (" DEAD" if row.dead else ""), style="bold red" if row.dead else "red"),
        Text(row.model),
        Text(row.tenant),
        Text(row.response),
        Text(row.message),
    )


_GATEWAY = (
    Column("GATEWAY"),
    Column("STATE"),
    Column("UNREAD", right=True),
)


def _gateway(row: GatewayRow) -> tuple[Text, ...]:
    return (
        Text(row.gateway),
        Text("reads" if row.listening else "gone", style="green" if row.listening else "bold red"),
        Text(_count(row.unread), style="yellow" if row.unread > 1000 else "dim"),
    )


# -- figures --------------------------------------------------------------------------------------------


def _duration(seconds: float | None) -> Text:
    if seconds is None:
        return Text("-", style="dim")
    if seconds < 10:
        return Text(f"{seconds:.1f} s")
    if seconds < 120:
        return Text(f"{seconds:.0f} s")
    if seconds < 7200:
        return Text(f"{seconds / 60:.0f} min")
    return Text(f"{seconds / 3600:.0f} h")


def _count(number: int) -> str:
    return f"{number:,}" if number < 100_000 else f"{number / 1000:,.0f} k"


def _size(size: int) -> str:
    value = float(size)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
