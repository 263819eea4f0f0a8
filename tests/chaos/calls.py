"""What one client asked for and what it saw: the client's half of the evidence. Must not know how it asks."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tests.chaos.world import now_ms

Behaviour = Literal["plain", "returns", "elsewhere", "leaves", "cancels", "twins", "slow"]
TERMINALS = ("response.completed", "response.incomplete", "response.failed")
DELTA, TEXT_DONE = "response.output_text.delta", "response.output_text.done"


class Seen(NamedTuple):
    """One event. ``text``: of a delta, or all of it when it is done."""

    at_ms: float
    number: int
    type: str
    text: str


@dataclass(slots=True)
class Call:
    """One response as its client has it. ``params``: of the request, without its input. ``left_ms``,
    ``cancel_ms``: when the client hung up for good, or asked for the end. ``twin``: the number of the call
    that used the same key at the same time. ``refused``: why it was never accepted. ``notices``: what the
    client helper told about its connection."""

    number: int
    behaviour: Behaviour
    params: Mapping[str, Any]
    asked_ms: float = field(default_factory=now_ms)
    id: str = ""
    seen: list[Seen] = field(default_factory=list)
    final: Mapping[str, Any] | None = None
    left_ms: float | None = None
    cancel_ms: float | None = None
    twin: int | None = None
    refused: str = ""
    failure: str = ""
    notices: list[tuple[float, str]] = field(default_factory=list)

    def see(self, event: Mapping[str, Any]) -> None:
        """Queue positions carry no number, so they are no part of the evidence."""
        kind = sys.intern(str(event["type"]))
        response = event.get("response")
        if response is not None and not self.id:
            self.id = response["id"]
        if "sequence_number" not in event or "position" in event:
            return
        text = str(event.get("delta") or event.get("text") or "")
        self.seen.append(Seen(now_ms(), int(event["sequence_number"]), kind, text))
        if kind in TERMINALS:
            self.final = response

    @property
    def cursor(self) -> int:
        """The number of the last event seen; -1 before the first."""
        return self.seen[-1].number if self.seen else -1

    @property
    def tokens(self) -> int:
        """Seen so far: the numbers tell."""
        return self.cursor // 1000 if self.seen else 0

    def port_at(self, at_ms: float) -> int:
        """Of the gateway that it was at, as its client told; 0: of none yet."""
        return self._connection_at(at_ms)[1]

    def connected_ms(self, at_ms: float) -> float:
        """Since when it was there."""
        return self._connection_at(at_ms)[0]

    def _connection_at(self, at_ms: float) -> tuple[float, int]:
        told = ((at, re.search(r"//127\.0\.0\.1:(\d+)", what)) for at, what in self.notices if at <= at_ms)
        connections = [(at, int(found[1])) for at, found in told if found]
        return connections[-1] if connections else (self.asked_ms, 0)

    @property
    def ended(self) -> bool:
        return bool(self.seen) and self.seen[-1].type in TERMINALS

    @property
    def text(self) -> str:
        return "".join(seen.text for seen in self.seen if seen.type == DELTA)
