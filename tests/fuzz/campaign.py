"""Attacks for a number of rounds, several at once; and what must be true of the gateway's process then: it
answers, its log tells of no fault, nothing is left running, and its memory has stopped growing."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import httpx

from tests.fuzz.events import RESPONSE
from tests.fuzz.requests import RequestAttacker
from tests.fuzz.sockets import SocketAttacker

AT_ONCE = 8
SETTLE_S = 60.0
FAULTS = ("Traceback", "internal_error", " ERROR ", "CRITICAL")


class Campaign:
    """``pid``: of the gateway, whose memory is watched."""

    def __init__(self, url: str, pid: int, seed: int) -> None:
        self._url = url
        self._pid = pid
        self._attackers = [
            attacker
            for n in range(AT_ONCE)
            for attacker in (SocketAttacker(url, seed * 1000 + n), RequestAttacker(url, seed * 1000 + n))
        ]

    @property
    def seen(self) -> Counter[tuple[str, str]]:
        return sum((attacker.seen for attacker in self._attackers), Counter())

    async def run(self, rounds: int) -> None:
        """Each attacker that often. Raises what they raise."""

        async def attack(attacker: SocketAttacker | RequestAttacker) -> None:
            for _ in range(rounds):
                await attacker.attack()

        async with asyncio.TaskGroup() as tasks:
            for n, attacker in enumerate(self._attackers):
                tasks.create_task(attack(attacker), name=f"attacker {n}")

    async def settle(self) -> None:
        """Until nothing of it is left, and a good question is answered."""
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=SETTLE_S) as client,
            asyncio.timeout(SETTLE_S),
        ):
            while await left(client):
                await asyncio.sleep(0.1)
            answer = await client.post(
                "/v1/responses", json={"input": "still there?", "max_output_tokens": 4}
            )
            assert answer.status_code == 200, answer.text
            gone = await client.get(f"/v1/responses/{RESPONSE}")
            assert gone.status_code == 404, gone.text

    def rss_mib(self) -> float:
        """Resident memory of the gateway."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        (kib,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(kib) / 1024

    def report(self) -> str:
        return json.dumps({f"{what}: {end}": n for (what, end), n in sorted(self.seen.items())}, indent=1)


async def left(client: httpx.AsyncClient) -> float:
    """Responses that run and sockets that are open."""
    lines = (await client.get("/metrics")).text.splitlines()
    names = ("headrace_gateway_requests_running", "headrace_gateway_connections")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def faults(log: str) -> list[str]:
    return [line for line in log.splitlines() if any(fault in line for fault in FAULTS)]
