"""What a gateway keeps of a response that it follows, besides what its readers see."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from broker.telemetry import Trace
from gateway.admission import Ticket
from gateway.conversation import Opened
from gateway.feed import Feed
from gateway.live import Live, now_ms
from gateway.meter import Meter
from gateway.tokenizer import ChatTokenizer
from schemas.ids import WorkerId


@dataclass(slots=True, eq=False)
class Accepted:
    """What this gateway keeps of a response that it accepted itself."""

    opened: Opened
    tokenizer: ChatTokenizer
    meter: Meter
    ticket: Ticket
    trace: Trace | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """``accepted`` None: another gateway's response, which ``following`` brings. ``settled``: its job is
    stored and its log ``read`` up to now, its leader's too, or it was removed. ``grace``: set while it has no
    client, until the time is up."""

    live: Live
    accepted: Accepted | None = None
    worker: WorkerId | None = None  # who writes it now
    had_client: bool = False
    closing: bool = False
    read: bool = False
    deadline: asyncio.TimerHandle | None = None
    grace: asyncio.TimerHandle | None = None
    following: asyncio.Task[None] | None = None
    feed: Feed | None = None  # of a response that it joined
    begun_unix_ms: float = field(default_factory=now_ms)
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    def stop_timers(self) -> None:
        for timer in (self.deadline, self.grace):
            if timer is not None:
                timer.cancel()
