"""``python -m tests.chaos --minutes 30 --seed 7``: kills, pauses and cuts a whole installation under load,
and checks every response token by token. Exit status 1 where a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop
from rich.console import Console

from tests.chaos.campaign import campaign
from tests.chaos.report import Report, teller
from tests.chaos.world import Sizes


def main() -> int:
    args = _arguments()
    console = Console(soft_wrap=True, highlight=False)
    tell = teller(console)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(_run(args, tell))
    report.print(console)
    if args.json is not None:
        args.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 1 if report.violations else 0


async def _run(args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
    sizes = Sizes(
        gateways=args.gateways,
        workers=args.workers,
        slots=args.slots,
        clients=args.clients,
        inter_token_ms=args.inter_token_ms,
    )
    seconds, number = args.minutes * 60, 0
    async with campaign(args.seed, sizes, tell, folder=args.folder, every_s=args.every) as chaos:
        while seconds >= 1:
            await chaos.round(number, min(seconds, args.round_seconds))
            seconds -= args.round_seconds
            number += 1
        return await chaos.finish()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="of faults, without the settling between")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--every", type=float, default=4, help="mean seconds between faults")
    parser.add_argument("--round-seconds", type=float, default=120, help="then all settles and is checked")
    parser.add_argument("--gateways", type=int, default=Sizes.gateways)
    parser.add_argument("--workers", type=int, default=Sizes.workers)
    parser.add_argument("--slots", type=int, default=Sizes.slots, help="of each worker")
    parser.add_argument("--clients", type=int, default=Sizes.clients)
    parser.add_argument("--inter-token-ms", type=float, default=Sizes.inter_token_ms)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--folder", type=Path, help="keep logs and stores here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
