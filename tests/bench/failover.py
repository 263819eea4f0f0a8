"""``python -m tests.bench.failover``: how long a client waits when its worker goes, one fault at a time.

Streams of the simulated engine flow through one gateway from three workers with free slots. One worker
after the other is killed, loses its host (guardian and worker at once), hangs, or is drained; each answer
is checked token by token, as in ``tests.chaos``. Prints a table and, with ``--json``, the same figures;
beside the failovers the longest silence of streams that nothing happened to: what the machine itself costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from tests.chaos.calls import DELTA, Call
from tests.chaos.campaign import Campaign, campaign
from tests.chaos.failover import Failover, percentiles
from tests.chaos.faults import BY_NAME, Planned
from tests.chaos.load import Load
from tests.chaos.report import PARTS, teller
from tests.chaos.world import Sizes

ANSWER = {"max_output_tokens": 500, "ignore_eos": True}
WARM_UP_S = 4.0  # until all streams flow
BUDGETS_MS = {"killed": 150.0, "host gone": 1200.0, "hung": 4000.0}  # of the silence beyond the prefill, p99

# name of the fault, how long it lasts, seconds from one to the next: till its worker serves again
FAULTS = (
    ("worker process killed", 0.0, 8.0),
    ("worker host gone", 0.5, 9.0),
    ("worker paused", 6.0, 12.0),
    ("worker drained", 0.0, 9.0),
)


class SteadyLoad(Load):
    """Long answers, one after the other, to clients that stay."""

    async def _ask(self, behaviour: object, urls: list[str], rng: random.Random, who: str) -> None:
        await self._plain(self._call("plain", ANSWER), urls)


def main() -> int:
    args = _arguments()
    console = Console(soft_wrap=True, highlight=False)
    tell = teller(console)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found, undisturbed, violations = runner.run(_run(args, tell))
    figures = _figures(found, undisturbed)
    _print(figures, console)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if violations else 0


async def _run(
    args: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[list[Failover], list[float], int]:
    sizes = Sizes(
        gateways=1,
        workers=3,
        slots=args.streams,
        clients=args.streams,
        inter_token_ms=args.inter_token_ms,
        mean_output_tokens=0,
        ack_wait_s=15,
        relays=False,
    )
    undisturbed: list[float] = []
    async with campaign(args.seed, sizes, tell) as chaos:
        for number, (name, lasts_s, every_s) in enumerate(FAULTS):
            plan = [
                Planned(WARM_UP_S + turn * every_s, BY_NAME[name], turn % sizes.workers, lasts_s)
                for turn in range(args.times)
            ]
            load = await _strike(chaos, plan, number, WARM_UP_S + args.times * every_s)
            undisturbed += _silences(load.calls, chaos)
        report = await chaos.finish()
    return report.failovers, undisturbed, len(report.violations)


async def _strike(chaos: Campaign, plan: Sequence[Planned], number: int, seconds: float) -> Load:
    sizes = chaos.world.sizes
    load = SteadyLoad(
        chaos.world.urls, seed=str(number), clients=sizes.clients, grace_s=sizes.grace_s, call_limit_s=60
    )
    await chaos.strike(load, plan, seconds)
    return load


def _silences(calls: Sequence[Call], chaos: Campaign) -> list[float]:
    """The longest between two pieces of text, for each answer that had one writer only."""
    moved = {failover.response for failover in chaos.report.failovers}
    found: list[float] = []
    for call in calls:
        at_ms = [seen.at_ms for seen in call.seen if seen.type == DELTA]
        if call.id not in moved and len(at_ms) > 1:
            found.append(max(after - before for before, after in pairwise(at_ms)))
    return found


def _figures(found: Sequence[Failover], undisturbed: Sequence[float]) -> dict[str, object]:
    kinds = {each.kind: [other for other in found if other.kind == each.kind] for each in found}
    return {
        "failover_ms": {
            kind: {"streams": len(group), "budget_p99": BUDGETS_MS.get(kind)}
            | {part: percentiles([getattr(each, part) for each in group]) for part in PARTS}
            for kind, group in kinds.items()
        },
        "undisturbed_ms": {"streams": len(undisturbed), "silence": percentiles(undisturbed)},
    }


def _print(figures: dict[str, object], console: Console) -> None:
    table = Table(
        "worker", "part", "streams", "p50", "p95", "p99", "max", "budget, p99", title="milliseconds"
    )
    failovers, undisturbed = figures["failover_ms"], figures["undisturbed_ms"]
    assert isinstance(failovers, dict)
    assert isinstance(undisturbed, dict)
    for kind, group in failovers.items():
        for part in PARTS:
            first = part == PARTS[0]
            budget = f"{group['budget_p99']:g}" if first and group["budget_p99"] else ""
            streams = str(group["streams"]) if first else ""
            table.add_row(kind if first else "", part, streams, *map(str, group[part].values()), budget)
    shown = map(str, undisturbed["silence"].values())
    table.add_row("undisturbed", "silence", str(undisturbed["streams"]), *shown, "")
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.failover", description=__doc__)
    parser.add_argument("--times", type=int, default=12, help="how often each fault happens")
    parser.add_argument("--streams", type=int, default=24, help="at once, over three workers")
    parser.add_argument("--inter-token-ms", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
