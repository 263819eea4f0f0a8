"""Fuzzing by hand, for as long as one likes: ``python -m tests.fuzz --minutes 10 --seed 3``."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from tests.e2e.stack import Stack
from tests.fuzz.campaign import Campaign, faults

ROUNDS = 50


async def fuzz(stack: Stack, seed: int, minutes: float) -> None:
    gateway = stack.part("gateway")
    campaign = Campaign(stack.url, gateway.pid, seed)
    ends = time.monotonic() + minutes * 60
    while time.monotonic() < ends:
        await campaign.run(ROUNDS)
        await campaign.settle()
        print(f"{sum(campaign.seen.values()):7} attacks, {campaign.rss_mib():.1f} MiB", flush=True)
    print(campaign.report())
    assert stack.part("gateway") == gateway, "the gateway was started anew"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        stack = Stack(data, env={"HEADRACE_SIM__INTER_TOKEN_MS": "2"})
        try:
            asyncio.run(fuzz(stack, given.seed, given.minutes))
        finally:
            stack.stop()
        log = "\n".join(path.read_text() for path in (data / "logs").glob("gateway*.log"))
        assert not faults(log), faults(log)


if __name__ == "__main__":
    main()
