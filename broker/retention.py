"""How full a stream is, and how far back what it holds reaches, as the server tells it. Must not know who
asks, nor what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import msgspec

from broker import jetstream
from broker.connection import Broker

TIMEOUT_S = 2.0
AGED = 0.95  # of the greatest age: what reaches back so far loses its oldest to age, not to size


@dataclass(frozen=True, slots=True)
class Retention:
    """``fill``: of the bytes or messages that the stream may hold, whichever is nearer its limit.
    ``reach_s``: the age of its oldest message, by the server's clock; 0 where it is empty. A stream that is
    full drops the oldest for each new one, so ``reach_s`` is then what it keeps at the load that it has."""

    fill: float = 0.0
    reach_s: float = 0.0
    max_age_s: float = math.inf

    def is_squeezed(self, need_s: float, full: float) -> bool:
        """By bytes or messages, before anything in it is ``need_s`` old, or as old as it may be."""
        return self.fill >= full and self.reach_s < self.needed_s(need_s)

    def needed_s(self, need_s: float) -> float:
        """So far it must reach back: ``need_s``, or as far as its age limit lets it."""
        return min(need_s, AGED * self.max_age_s)


class _Config(msgspec.Struct, frozen=True):
    max_bytes: int = -1
    max_msgs: int = -1
    max_age: int = 0  # ns; 0: any


class _State(msgspec.Struct, frozen=True):
    first_ts: datetime
    messages: int = 0
    bytes: int = 0


class _Info(msgspec.Struct, frozen=True):
    config: _Config
    state: _State
    ts: datetime


async def retention(broker: Broker, stream: str) -> Retention:
    """Raises ``NoAnswer``, ``ApiError``."""
    info = await jetstream.call(broker, f"STREAM.INFO.{stream}", b"", _Info, timeout_s=TIMEOUT_S)
    held, most = info.state, info.config
    if not held.messages:
        return Retention()
    shares = ((held.bytes, most.max_bytes), (held.messages, most.max_msgs))
    return Retention(
        fill=max((have / limit for have, limit in shares if limit > 0), default=0.0),
        reach_s=(info.ts - held.first_ts).total_seconds(),
        max_age_s=most.max_age / 1e9 if most.max_age else math.inf,
    )
