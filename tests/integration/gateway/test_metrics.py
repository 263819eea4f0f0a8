"""What a gateway's metrics say of clients, tokens and queues: real processes, asked as Prometheus asks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
import websockets
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, Process, gateway

LIMIT_S = 30
MODEL = {"model": "headrace-sim"}
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def counted(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    sim_worker: Process,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("counted")
    with gateway(shared_nats_server, shared_redis_server, folder, cache=True) as running:
        yield running


class Shown:
    """What is shown now."""

    def __init__(self, served: Gateway) -> None:
        text = httpx.get(f"{served.url}/metrics", timeout=LIMIT_S).text
        self._samples: Samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._samples.get((f"headrace_{name}", frozenset(labels.items())), 0.0)

    def names(self) -> set[str]:
        return {name for name, _ in self._samples}


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def test_a_gateway_says_what_it_is(counted: Gateway) -> None:
    shown = Shown(counted)
    assert shown("gateway_ready") == 1
    assert not [name for name in shown.names() if name.startswith("headrace_worker_")]
    assert [name for name in shown.names() if name == "headrace_build_info"]
    assert shown("gateway_tcp_connections") >= 1  # the one that asks


def test_shared_answers_are_told_from_those_an_engine_made(counted: Gateway) -> None:
    body = {"input": "the same question", "max_output_tokens": 20, "temperature": 0}
    before = Shown(counted)
    for _ in range(3):
        answer = httpx.post(f"{counted.url}/v1/responses", json=body, timeout=LIMIT_S)
        assert answer.status_code == 200
        prompt = answer.json()["usage"]["input_tokens"]
    wait_until(lambda: Shown(counted)("gateway_prompt_tokens_total", **MODEL) >= 3 * prompt)
    shown = Shown(counted)

    def saved(kind: str) -> float:
        labels = {**MODEL, "how": "cache", "kind": kind}
        return shown("gateway_saved_tokens_total", **labels) - before("gateway_saved_tokens_total", **labels)

    assert saved("prompt") == 2 * prompt
    assert saved("completion") == 2 * 20


async def test_streams_are_shown_while_they_last_and_their_events_are_counted(counted: Gateway) -> None:
    before = Shown(counted)
    body = {"input": "a stream", "max_output_tokens": 300, "stream": True, "temperature": 1}
    async with (
        asyncio.timeout(LIMIT_S),
        httpx.AsyncClient(base_url=counted.url, timeout=LIMIT_S) as http,
        websockets.connect(f"{counted.ws_url}/v1/responses") as socket,
    ):
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 300, "temperature": 1}
        async with (
            http.stream("POST", "/v1/responses", json=body) as sse,
            http.stream("POST", "/v1/chat/completions", json={**chat, "stream": True}) as chunks,
        ):
            await socket.send(json.dumps({**body, "type": "response.create"}))
            for api, transport in (("responses", "sse"), ("chat", "sse"), ("responses", "websocket")):
                while Shown(counted)("gateway_streams", api=api, transport=transport) != 1:
                    await asyncio.sleep(0.02)
            read = len(await sse.aread()), len(await chunks.aread())
        messages = 0
        size = 0
        while True:
            event = await socket.recv()
            messages, size = messages + 1, size + len(event.encode() if isinstance(event, str) else event)
            if '"type":"response.incomplete"' in str(event)[:40]:
                break
        shown = Shown(counted)

    def grown(name: str, **labels: str) -> float:
        return shown(name, **labels) - before(name, **labels)

    assert grown("gateway_sent_messages_total", transport="websocket") == messages
    assert grown("gateway_sent_bytes_total", transport="websocket") == size
    assert grown("gateway_sent_bytes_total", transport="sse") == sum(read)
    assert 0 < grown("gateway_sent_messages_total", transport="sse") <= 2 * 310
    assert grown("gateway_update_tokens_total") == 900
    assert 0 < grown("gateway_updates_total") <= 900
    for api, transport in (("responses", "sse"), ("chat", "sse"), ("responses", "websocket")):
        wait_until(lambda a=api, t=transport: Shown(counted)("gateway_streams", api=a, transport=t) == 0)


def test_queues_streams_and_redis_are_shown_with_nobody_asking(counted: Gateway) -> None:
    def looked() -> bool:
        shown = Shown(counted)
        return shown("redis_round_trip_seconds_count") > 0 and shown("survey_timestamp_seconds") > 0

    wait_until(looked)
    shown = Shown(counted)
    assert shown("stream_max_bytes", stream="REPLIES") > 0
    assert shown("broker_round_trip_seconds_count") >= 3
    found = shown._samples.keys()
    queue = frozenset({**MODEL, "priority": "interactive", "lane": "fair"}.items())
    assert ("headrace_queue_depth", queue) in found
    assert ("headrace_queue_oldest_age_seconds", queue) in found


def test_a_redis_that_goes_away_is_seen_without_a_request(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    served = Gateway(nats_server, redis_server, tmp_path)
    try:
        wait_until(lambda: _answers(served))
        redis_server.kill()
        wait_until(lambda: Shown(served)("gateway_redis_degraded") == 1)
        assert Shown(served)("redis_errors_total") >= 1
        redis_server.restart()
        wait_until(lambda: Shown(served)("gateway_redis_degraded") == 0)
        assert Shown(served)("gateway_ready") == 0  # no worker
    finally:
        served.end()


def _answers(served: Gateway) -> bool:
    try:
        return httpx.get(f"{served.url}/healthz").status_code == 200
    except httpx.TransportError:
        return False
