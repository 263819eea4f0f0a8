"""What gateways and workers log of responses, with all logged that can be: one line at each end, and never a
prompt, an answer or a key."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import websockets

from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.credentials import bearer, command_of
from tests.integration.gateway.processes import Gateway, Process, gateway, worker
from tests.process_tree import children

LIMIT_S = 40
SECRET = "xylophone marmalade"
FRAGMENTS = ("xylophone", "marmalade")
SENTENCE = f"The word is {SECRET}, and that is all. "
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
EVERYTHING = {"HEADRACE_LOGGING__FORMAT": "json", "HEADRACE_LOGGING__LEVEL": "debug"}


def lines(of: Process, message: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in of.output.splitlines() if line.startswith("{")]
    return [line for line in found if line["message"] == message]


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def line_of(of: Process, message: str, response: str) -> dict[str, Any]:
    def there() -> list[dict[str, Any]]:
        return [line for line in lines(of, message) if line["response"] == response]

    wait_until(lambda: bool(there()))
    (line,) = there()
    return line


def test_a_response_s_line_tells_what_an_operator_asks(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    key = command_of(nats_server)("create", "acme", "--name", "tests", "--quiet")
    with (
        worker(nats_server, redis_server, tmp_path, EVERYTHING, inter_token_ms=2) as working,
        gateway(nats_server, redis_server, tmp_path, {"methods": "keys"}, extra=EVERYTHING) as served,
        httpx.Client(base_url=served.url, headers=bearer(key), timeout=LIMIT_S) as http,
    ):
        body = {"input": f"<|say|>{SENTENCE}", "max_output_tokens": 12, "conversation": f"about {SECRET}"}
        names = {"X-Client-Request-Id": "mine-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        answer = http.post("/v1/responses", json=body, headers=names)
        assert answer.status_code == 200
        told = line_of(served, "response ended", answer.json()["id"])
        done = line_of(working, "attempt ended", answer.json()["id"])
        usage = answer.json()["usage"]
        for line in (told, done):
            assert line["level"] == "info"
            assert (line["request_id"], line["trace_id"], line["tenant"]) == ("mine-1", TRACE, "acme")
            assert (line["model"], line["priority"], line["lane"]) == ("headrace-sim", "interactive", "fair")
            assert (line["outcome"], line["reason"]) == ("incomplete", "length")
            assert line["prompt_tokens"] == usage["input_tokens"]
            assert {"queue_ms", "engine_queue_ms", "prefill_ms", "decode_ms", "total_ms"} <= line.keys()
        assert told["session"] == done["session"]
        assert (told["attempts"], told["worker"], told["completion_tokens"]) == (1, done["worker"], 12)
        assert (done["attempt"], done["new_tokens"], done["gateway"]) == (1, 12, told["gateway"])
        assert 0 < told["edge_ms"] <= told["ttft_ms"] <= told["total_ms"]
        assert (told["api"], told["resumed"]) == ("responses", 0)

        wrong = http.post("/v1/responses", json={**body, "model": "none"}, headers=names)
        assert wrong.status_code == 404
        wait_until(lambda: bool(lines(served, "response refused")))
        (refused,) = lines(served, "response refused")
        assert (refused["code"], refused["tenant"], refused["request_id"]) == (
            "model_not_found",
            "acme",
            "mine-1",
        )
        assert (
            http.post("/v1/responses", json=body, headers={"X-Client-Request-Id": "a b"}).status_code == 400
        )
    no_secrets(key, served, working)


def test_under_faults_every_response_is_told_once_and_nothing_of_what_was_said(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    key = command_of(nats_server)("create", "acme", "--name", "tests", "--quiet")
    other = tmp_path / "other"
    other.mkdir()
    with (
        worker(nats_server, redis_server, tmp_path, EVERYTHING, inter_token_ms=5) as working,
        gateway(nats_server, redis_server, tmp_path, {"methods": "keys"}, extra=EVERYTHING) as served,
        gateway(nats_server, redis_server, other, {"methods": "keys"}, extra=EVERYTHING) as second,
    ):
        begun = asyncio.run(begin(served, key, 4))
        for path, broken in (("/v1/responses", f'{{"input": "{SECRET}"'), ("/chat", f'["{SECRET}"]')):
            answer = httpx.post(f"{served.url}{path}", content=broken, headers=bearer(key))
            assert answer.status_code == 400
        httpx.post(
            f"{served.url}/v1/responses", json={"input": SECRET, "colour": SECRET}, headers=bearer(key)
        )
        redis_server.kill()
        (pid,) = children(working.pid)
        os.kill(pid, signal.SIGKILL)
        assert asyncio.run(ends(second, key, begun[0])) == "response.completed"
        nats_server.kill()
        nats_server.restart()
        redis_server.restart()
        for response in begun[1:]:
            assert asyncio.run(ends(served, key, response)) == "response.completed"
        for response in begun:
            told = line_of(served, "response ended", response)
            assert told["outcome"] == "completed"
            assert told["attempts"] >= 2
            ended = [x for x in lines(working, "attempt ended") if x["response"] == response]
            assert [x["outcome"] for x in ended if x["outcome"] != "fenced_off"] == ["completed"]
        followed = line_of(second, "response ended", begun[0])
        assert followed["accepted_by"] != followed["gateway"]
        assert followed["resumed"] == 1
    no_secrets(key, served, second, working)


async def begin(served: Gateway, key: str, count: int) -> list[str]:
    """Responses that run; their client has gone."""
    found: list[str] = []
    url = f"{served.ws_url}/v1/responses"
    async with (
        asyncio.timeout(LIMIT_S),
        websockets.connect(url, additional_headers=bearer(key)) as connection,
    ):
        for n in range(count):
            create = {
                "type": "response.create",
                "input": f"{n} <|say|>{SENTENCE * 60}",
                "max_output_tokens": 4000,
            }
            await connection.send(json.dumps(create))
        running: set[str] = set()
        while len(running) < count:
            event = json.loads(await connection.recv())
            if event["type"] == "response.created":
                found.append(event["response"]["id"])
            elif event["type"] == "response.output_text.delta":
                running.add(event["item_id"])
    return found


async def ends(at: Gateway, key: str, response: str) -> str:
    """Taken up there, again and again until it has ended: the last event's type."""
    url = f"{at.url}/v1/responses/{response}?stream=true"
    async with asyncio.timeout(LIMIT_S), httpx.AsyncClient(headers=bearer(key), timeout=LIMIT_S) as http:
        while True:
            text = (await http.get(url)).text
            for ending in ("response.completed", "response.incomplete", "response.failed"):
                if f'"type":"{ending}"' in text:
                    return ending
            await asyncio.sleep(0.2)


def no_secrets(key: str, *parts: Process) -> None:
    assert any('"level":"debug"' in part.output for part in parts), "everything that can be logged is"
    for part in parts:
        output = part.output
        assert "Traceback" not in output
        for secret in (*FRAGMENTS, key, key.rpartition("_")[2]):
            assert secret not in output, [line for line in output.splitlines() if secret in line][:3]
