"""``headrace trace`` of real responses: the gateway's own figures, a worker's death, what there is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.ids import new_response_id
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, Process, gateway, worker
from tests.process_tree import children

LIMIT_S = 60
SIM = {"prefill_base_ms": 100, "inter_token_ms": 10, "mean_output_tokens": 0}
QUESTION = "what nobody shall read"


@pytest.fixture(scope="module")
def served(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Gateway, Process]]:
    folder: Path = tmp_path_factory.mktemp("trace")
    with (
        worker(shared_nats_server, shared_redis_server, folder, **SIM) as engine,
        gateway(shared_nats_server, shared_redis_server, folder) as front,
    ):
        yield front, engine


def headrace_trace(nats: NatsServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", "trace", *arguments],
        env={**os.environ, "HEADRACE_NATS__URL": nats.url, "COLUMNS": "130"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def read_back(nats: NatsServer, response: str) -> dict[str, Any]:
    done = headrace_trace(nats, response, "--json")
    assert done.returncode == 0, done.stderr
    traced: dict[str, Any] = json.loads(done.stdout)
    return traced


def test_a_life_with_a_death_in_it(served: tuple[Gateway, Process], shared_nats_server: NatsServer) -> None:
    front, engine = served
    asked = {"input": QUESTION, "max_output_tokens": 5000, "stream": True}
    with httpx.stream("POST", f"{front.url}/v1/responses", json=asked, timeout=LIMIT_S) as answer:
        events = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))
        response = next(events)["response"]["id"]
        while next(events)["type"] != "response.output_text.delta":
            pass
        running = read_back(shared_nats_server, response)["life"]
        assert running["state"] == "running"
        assert running["outcome"] is None
        (victim,) = children(engine.pid)
        os.kill(victim, signal.SIGKILL)
        while len(read_back(shared_nats_server, response)["life"]["attempts"]) < 2:
            pass
        while next(events)["type"] != "response.output_text.delta":
            pass
        httpx.post(f"{front.url}/v1/responses/{response}/cancel", timeout=LIMIT_S)
        last = [event for event in events if event["type"].startswith("response.")][-1]
    timings = last["response"]["timings"]
    life = read_back(shared_nats_server, response)["life"]
    assert life["state"] == "ended"
    assert life["outcome"]["kind"] == "cancelled"
    assert life["outcome"]["tokens"] == last["response"]["usage"]["output_tokens"]
    assert [attempt["ended"] for attempt in life["attempts"]] == ["replaced", "closed"]
    for part in ("edge", "queue", "prefill", "decode", "reconnect"):  # the gateway's own figures
        assert round(life["parts"][f"{part}_ms"], 3) == timings[f"{part}_ms"], part
    assert timings["reconnect_ms"] > 0
    assert life["parts"]["transport_ms"] <= timings["transport_ms"] + 0.01
    shown = headrace_trace(shared_nats_server, response)
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in ("reconnect", "replaced", "first token", "longest gap"))
    assert QUESTION not in shown.stdout
    print(shown.stdout)
    with_words = headrace_trace(shared_nats_server, response, "--show-text").stdout
    assert QUESTION in with_words


def test_one_that_waits_for_a_worker_that_is_not_there(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    with (
        worker(nats_server, redis_server, tmp_path, **SIM) as engine,
        gateway(nats_server, redis_server, tmp_path) as front,
    ):
        asked = {"input": QUESTION, "stream": True, "max_output_tokens": 4}
        engine.kill()
        with httpx.stream("POST", f"{front.url}/v1/responses", json=asked, timeout=LIMIT_S) as answer:
            lines = answer.iter_lines()
            first = next(line for line in lines if line.startswith("data: "))
            response = json.loads(first[6:])["response"]["id"]
            life = read_back(nats_server, response)["life"]
    assert life["state"] == "waiting"
    assert life["parts"]["queue_ms"] > 0
    assert life["job"]["headers"]["Hr-Tenant"] == life["job"]["tenant"]


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (new_response_id(), "nothing is kept of"),
        ("resp_nonsense", "is no response id"),
        ("x.>", "is no response id"),
    ],
)
def test_what_there_is_not(response: str, said: str, shared_nats_server: NatsServer) -> None:
    done = headrace_trace(shared_nats_server, response)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
