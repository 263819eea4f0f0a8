"""What a response says of where its time went, against what its client measured, with real processes.

The service's own parts and one measured round trip must come within 5 % of the client's clock, or within
``FLOOR_MS`` where that is more: a test runs beside others.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import websockets

from broker.stages import PARTS
from gateway.client import Client
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, Process, gateway, worker
from tests.process_tree import children

LIMIT_S = 60
FLOOR_MS = 30
PREFILL_MS, STEP_MS = 150, 10
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
SIM = {"prefill_base_ms": PREFILL_MS, "inter_token_ms": STEP_MS, "mean_output_tokens": 0, "slots": 1}
ASKED: dict[str, Any] = {"type": "response.create", "input": "Where does it go?", "max_output_tokens": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latency")


@pytest.fixture(scope="module")
def served(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, folder: Path
) -> Iterator[tuple[Gateway, Process]]:
    with (
        worker(shared_nats_server, shared_redis_server, folder, **SIM) as engine,
        gateway(shared_nats_server, shared_redis_server, folder) as front,
    ):
        answer = httpx.post(f"{front.url}/v1/responses", json={"input": "warm up", "max_output_tokens": 2})
        assert answer.status_code == 200
        yield front, engine


class Measured(NamedTuple):
    """``round_trip_ms``: of a ping on the same connection."""

    total_ms: float
    round_trip_ms: float
    response: dict[str, Any]

    @property
    def told(self) -> dict[str, float]:
        timings = self.response["timings"]
        return {part: timings[f"{part}_ms"] for part in PARTS}


async def measure(front: Gateway, **asked: Any) -> Measured:
    async with websockets.connect(f"{front.ws_url}/v1/responses") as connection, asyncio.timeout(LIMIT_S):
        round_trip_s = await (await connection.ping())
        begun = time.perf_counter()
        await connection.send(json.dumps({**ASKED, **asked}))
        while (event := json.loads(await connection.recv()))["type"] not in ENDS:
            pass
        total_ms = (time.perf_counter() - begun) * 1000
    assert event["type"] in ENDS[:2], event
    return Measured(total_ms, round_trip_s * 1000, event["response"])


def check_sum(measured: Measured) -> None:
    told = measured.told
    assert all(spent >= 0 for spent in told.values()), told
    total_ms = measured.response["timings"]["total_ms"]
    assert sum(told.values()) == pytest.approx(total_ms, abs=0.01)
    allowed_ms = max(0.05 * measured.total_ms, FLOOR_MS)
    assert abs(sum(told.values()) + measured.round_trip_ms - measured.total_ms) <= allowed_ms, measured


async def until_text(front: Gateway, connection: websockets.ClientConnection, count: int) -> None:
    while count:
        count -= json.loads(await connection.recv())["type"] == "response.output_text.delta"


def observed(front: Gateway) -> dict[str, tuple[float, float]]:
    """Count and sum in seconds of each stage, over all models."""
    text = httpx.get(f"{front.url}/metrics").text
    found: dict[str, list[float]] = {part: [0.0, 0.0] for part in PARTS}
    pattern = r'^headrace_gateway_stage_seconds_(count|sum)\{.*stage="(\w+)".*\} (\S+)$'
    for kind, part, value in re.findall(pattern, text, re.MULTILINE):
        found[part][kind == "sum"] += float(value)
    return {part: (count, total) for part, (count, total) in found.items()}


async def test_a_plain_answer(served: tuple[Gateway, Process]) -> None:
    front, _ = served
    before = observed(front)
    measured = await measure(front)
    check_sum(measured)
    told = measured.told
    assert told["prefill"] >= PREFILL_MS * 0.9
    assert told["decode"] >= 39 * STEP_MS * 0.9
    assert told["reconnect"] == 0
    after = observed(front)
    for part, spent_ms in told.items():  # the same figures in the metrics
        assert after[part][0] - before[part][0] == (spent_ms > 0)
        assert (after[part][1] - before[part][1]) * 1000 == pytest.approx(spent_ms, abs=0.01)


async def test_one_that_waited_for_another(served: tuple[Gateway, Process]) -> None:
    front, _ = served
    async with websockets.connect(f"{front.ws_url}/v1/responses") as connection, asyncio.timeout(LIMIT_S):
        await connection.send(json.dumps({**ASKED, "max_output_tokens": 60}))
        await until_text(front, connection, 1)  # it has the one slot now
        measured = await measure(front, input="And I?", max_output_tokens=5)
    check_sum(measured)
    assert measured.told["queue"] > 40 * STEP_MS * 0.9
    assert measured.told["queue"] > measured.told["prefill"] > PREFILL_MS * 0.9


async def test_one_that_a_stop_string_ended_and_one_that_was_cancelled(
    served: tuple[Gateway, Process],
) -> None:
    front, _ = served
    stopped = await measure(front, input="<|say|>one two three END four five six", stop=["END"])
    check_sum(stopped)
    assert stopped.response["status"] == "completed"
    assert stopped.told["prefill"] > PREFILL_MS * 0.9
    async with websockets.connect(f"{front.ws_url}/v1/responses") as connection, asyncio.timeout(LIMIT_S):
        begun = time.perf_counter()
        await connection.send(json.dumps({**ASKED, "max_output_tokens": 500}))
        created = json.loads(await connection.recv())
        await until_text(front, connection, 10)
        cancel = {"type": "response.cancel", "response_id": created["response"]["id"]}
        await connection.send(json.dumps(cancel))
        while (event := json.loads(await connection.recv()))["type"] not in ENDS:
            pass
        measured = Measured((time.perf_counter() - begun) * 1000, 0.0, event["response"])
    assert measured.response["status"] == "cancelled"
    check_sum(measured)
    assert measured.told["decode"] > 8 * STEP_MS


async def test_one_whose_worker_was_killed(
    served: tuple[Gateway, Process],
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    folder: Path,
) -> None:
    front, engine = served
    running = asyncio.create_task(measure(front, input="A long one", max_output_tokens=80), name="measure")
    await asyncio.sleep((PREFILL_MS + 20 * STEP_MS) / 1000)
    (victim,) = children(engine.pid)
    os.kill(victim, signal.SIGKILL)
    measured = await running
    check_sum(measured)
    told = measured.told
    assert told["reconnect"] > PREFILL_MS * 0.9  # the next worker read the prompt again
    assert told["prefill"] > PREFILL_MS * 0.9 or told["decode"] > 70 * STEP_MS * 0.9
    with gateway(shared_nats_server, shared_redis_server, folder) as other:  # which sees it in the log alone
        async with httpx.AsyncClient(base_url=other.url) as client:
            kept = await client.get(f"/v1/responses/{measured.response['id']}")
    found = kept.json()["timings"]
    for part in PARTS[:-1]:
        assert found[f"{part}_ms"] == measured.response["timings"][f"{part}_ms"]
    assert found["transport_ms"] <= measured.told["transport"] + 0.01


async def test_the_python_client_tells_its_own_part(served: tuple[Gateway, Process]) -> None:
    front, _ = served
    async with Client([front.url]) as client, asyncio.timeout(LIMIT_S):
        answer = await client.respond(input="In Python", max_output_tokens=20)
    parts = answer.latency_parts
    assert set(parts) == {*PARTS, "network"}
    assert sum(parts.values()) == pytest.approx(answer.measured_ms)
    assert parts["decode"] > 19 * STEP_MS * 0.9
