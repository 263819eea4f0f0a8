from __future__ import annotations

import io

import pytest
from rich.console import Console

from deploy.top.screen import screen
from deploy.top.snapshot import (
    FailureRow,
    GatewayRow,
    QueueRow,
    Snapshot,
    StreamRow,
    TenantRow,
    WorkerRow,
)


def snapshot(connected: bool = True, error: str = "", tenants: int = 40) -> Snapshot:
    return Snapshot(
        unix_ms=1_700_000_000_000,
        broker="nats://127.0.0.1:4222",
        connected=connected,
        error=error,
        answer_ms=0.7,
        gateways=(
            GatewayRow(gateway="gw-1", listening=True, unread=0),
            GatewayRow(gateway="gw-2", listening=False, unread=7),
        ),
        workers=tuple(worker(number) for number in range(6)),
        queues=tuple(
            QueueRow(
                model="river",
                priority="interactive",
                lane=lane,
                waiting=waiting,
                running=running,
                oldest_s=oldest,
                pulled_per_s=4.5,
                wait_s=12.0,
            )
            for lane, waiting, running, oldest in (("fair", 0, 5, None), ("over", 1234, 3, 90.0))
        ),
        tenants=tuple(TenantRow(tenant=f"tenant-{n}", waiting=n, over=0, running=1) for n in range(tenants)),
        failures=(
            FailureRow(
                unix_ms=1_700_000_000_000,
                code="poison",
                dead=True,
                model="river",
                tenant="acme",
                response="resp_01J0000000000000000000000",
                message="Every worker that tried this request failed",
            ),
        ),
        streams=(
            StreamRow(stream="JOBS", messages=5, bytes=1000, filled=0.91, oldest_s=5.0),
            StreamRow(stream="DEAD", messages=1, bytes=10, filled=0.0, oldest_s=1.0),
        ),
    )


def worker(number: int) -> WorkerRow:
    return WorkerRow(
        worker=f"wk-{number}",
        model="river",
        host="host",
        pid=100 + number,
        engine="sim 1",
        version="0.1.0",
        state="silent" if number == 0 else "ready",
        seen_s=9.0 if number == 0 else 0.5,
        up_s=4000.0,
        slots=8,
        running=8,
        waiting=0,
        tokens_per_s=350.0,
        kv_cache_usage=0.5,
    )


def drawn(shown: Snapshot, width: int, height: int | None) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    console.print(screen(shown, width, height))
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60), (60, 12), (40, 6), (20, 3)])
def test_it_fits(width: int, height: int) -> None:
    lines = drawn(snapshot(), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_every_part_is_seen_on_the_usual_terminal_and_what_is_left_out_is_counted() -> None:
    text = "\n".join(drawn(snapshot(), 80, 24))
    for word in (
        "1 gateways",
        "5 workers",
        "40/40 slots",
        "1,234 jobs waiting",
        "river",
        "over",
        "90 s",
        "12 s",
    ):
        assert word in text, word
    for word in ("wk-0", "silent", "tenant-0", "poison DEAD", "resp_01J", "gw-1", "JOBS 5", "91% full"):
        assert word in text, word
    assert "… 3" in text  # tenants, and how many are left out
    whole = "\n".join(drawn(snapshot(), 80, None))
    assert "more" not in whole
    assert all(f"tenant-{number}" in whole for number in range(40))


def test_a_lost_broker_is_said() -> None:
    assert "DISCONNECTED" in drawn(snapshot(connected=False, error="broker_unavailable"), 80, 24)[0]
    assert "no answer: timeout" in drawn(snapshot(error="timeout"), 120, 24)[0]


def test_an_empty_system_is_told_as_one() -> None:
    empty = Snapshot(unix_ms=0, broker="nats://x", connected=True)
    text = "\n".join(drawn(empty, 80, 24))
    assert "0 workers" in text
    assert "no queues: no worker yet" in text
    assert "nobody has a job" in text
