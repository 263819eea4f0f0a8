"""What a run has shown: a table for people, JSON for machines, and for each violation its timeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from broker import jetstream, subjects
from broker.connection import Broker
from broker.replylog import decode_stored
from schemas.ids import ResponseId
from schemas.reply import Closed, Failed, Finished, Handoff, ReplyMessage, Started, Tokens
from tests.chaos.calls import DELTA
from tests.chaos.checks import Violation
from tests.chaos.failover import Failover, percentiles
from tests.chaos.faults import Injected
from tests.chaos.world import now_ms

AROUND_MS = 3000.0
PARTS = ("excess", "silence", "detect", "claim", "prefill")


@dataclass
class Report:
    """``seconds``: of faults and load, without the settling after each round."""

    seed: int
    seconds: float = 0.0
    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    behaviours: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    failovers: list[Failover] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)

    @property
    def responses(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != "refused")

    def as_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "rounds": self.rounds,
            "faults": dict(self.faults.most_common()),
            "responses": self.responses,
            "outcomes": dict(self.outcomes.most_common()),
            "behaviours": dict(self.behaviours.most_common()),
            "tokens": self.tokens,
            "violations": [
                {"rule": each.rule, "detail": each.detail, "response": each.response}
                for each in self.violations
            ],
            "failover_ms": {
                label: {"count": len(group)}
                | {part: percentiles([getattr(each, part) for each in group]) for part in PARTS}
                for label, group in self._groups()
            },
        }

    def print(self, console: Console) -> None:
        minutes = self.seconds / 60
        console.print(
            f"seed {self.seed}: {minutes:.1f} minutes, {sum(self.faults.values())} faults, "
            f"{self.responses} responses ({self.tokens} tokens) checked, {len(self.violations)} violations"
        )
        if self.violations:
            console.print(_counts("violation of", Counter(each.rule for each in self.violations)))
        console.print(_counts("fault", self.faults))
        console.print(_counts("outcome", self.outcomes))
        console.print(_counts("client", self.behaviours))
        table = Table("failover", "part", "streams", "p50", "p95", "p99", "max", title="milliseconds")
        for label, group in self._groups():
            for part in PARTS:
                found = percentiles([getattr(each, part) for each in group])
                first = part == PARTS[0]
                table.add_row(
                    label if first else "", part, str(len(group)) if first else "", *map(str, found.values())
                )
        console.print(table)

    def _groups(self) -> Iterator[tuple[str, list[Failover]]]:
        """``alone``: by no other fault; what the budgets are about."""
        for kind in sorted({each.kind for each in self.failovers}):
            group = [each for each in self.failovers if each.kind == kind]
            alone = [each for each in group if each.alone]
            if alone:
                yield f"{kind}, alone", alone
            yield f"{kind}, all", group


def _counts(what: str, counts: Counter[str]) -> Table:
    table = Table(what, "count")
    for name, count in counts.most_common():
        table.add_row(name, str(count))
    return table


async def timeline(broker: Broker, violation: Violation, faults: Sequence[Injected]) -> list[str]:
    """What was stored, what the client saw and what was done to the world, in order of time."""
    entries: list[tuple[float, str]] = []
    if violation.response:
        log_filter = subjects.replies_of_response(ResponseId(violation.response))
        writer = None
        async for item in jetstream.messages(broker, subjects.REPLIES, log_filter):
            message = decode_stored(item)
            tokens_by = message.fence if isinstance(message, Tokens) else None
            if tokens_by is not None and tokens_by == writer:
                entries.pop()
            else:
                first, writer = item.stored_unix_ms, tokens_by
            since = f", since {clock(first)}" if first != item.stored_unix_ms else ""
            entries.append((item.stored_unix_ms, f"log {item.seq:>8}  {_shown(message)}{since}"))
    call = violation.call
    if call is not None:
        entries.append((call.asked_ms, f"client {call.number} ({call.behaviour}) asks: {dict(call.params)}"))
        entries += [(at, f"client helper: {what}") for at, what in call.notices]
        entries += [
            (seen.at_ms, f"client sees   {seen.number} {seen.type} {seen.text[:40]!r}")
            for seen in call.seen
            if seen.type != DELTA or seen.number % 50_000 < 1000
        ]
        entries += [
            (at, f"client {what}")
            for at, what in ((call.cancel_ms, "cancels"), (call.left_ms, "leaves"))
            if at is not None
        ]
    if entries:
        begun_ms, over_ms = min(entries)[0] - AROUND_MS, max(entries)[0] + AROUND_MS
        for fault in faults:
            if fault.touches(begun_ms, over_ms):
                entries.append((fault.at_ms, f"FAULT {fault} ({fault.worker_id})"))
                if fault.healed_ms is not None:
                    entries.append((fault.healed_ms, f"HEALED {fault}"))
    return [f"{clock(at)}  {what}" for at, what in sorted(entries)]


def teller(console: Console) -> Callable[[str], None]:
    """Prints a line with the time before it."""
    return lambda line: console.print(f"{clock(now_ms())}  {line}", markup=False)


def clock(unix_ms: float) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]


def _shown(message: ReplyMessage | None) -> str:
    match message:
        case Started():
            return f"Started, attempt {message.attempt} by {message.worker}, delivery {message.delivered}"
        case Tokens():
            return f"Tokens {message.offset}…{message.offset + len(message.ids)} under {message.fence}"
        case Finished():
            return f"Finished {message.total} {message.reason} under {message.fence}"
        case Failed():
            return f"Failed {message.code} under {message.fence}: {message.message}"
        case Closed():
            return f"Closed {message.reason} {message.code or ''} at {message.total}"
        case Handoff():
            return f"Handoff by {message.fence}"
    return "undecodable" if message is None else type(message).__name__
