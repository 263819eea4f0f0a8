"""The harness, in processes of its own: signals, exit codes, what is written when something fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

PROGRAM = """
import asyncio, sys
from broker import metrics
from broker.connection import Broker, BrokerClosed
from broker.process import run_process, Shutdown
from schemas.config import Config, Logging

class OwnError(Exception): pass

async def main(shutdown: Shutdown) -> None:
    {body}

sys.exit(run_process("part", Config(logging=Logging(format="{format}")), main, known_errors=(OwnError,)))
"""


def start(body: str, log_format: str = "text") -> subprocess.Popen[str]:
    program = PROGRAM.format(body=body.replace("\n", "\n    "), format=log_format)
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_for_the_end(which: signal.Signals) -> None:
    process = start('print("up", flush=True)\nawait shutdown.requested.wait()')
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(which)
    code, err = finish(process)
    assert code == 0
    assert f"stopping on {which.name}" in err


def test_the_second_signal_ends_at_once() -> None:
    body = """print("up", flush=True)
await shutdown.requested.wait()
print("draining", flush=True)
await asyncio.sleep(60)"""
    process = start(body)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "draining\n"
    process.send_signal(signal.SIGINT)
    code, err = finish(process)
    assert code == 1
    assert "second signal" in err
    assert "Traceback" not in err


def test_returning_is_a_clean_end() -> None:
    assert finish(start("return"))[0] == 0


def test_a_dead_child_task_takes_the_process_down() -> None:
    body = """async def die():
    raise ValueError("bug here")
async with asyncio.TaskGroup() as group:
    group.create_task(asyncio.sleep(60))
    group.create_task(die())"""
    code, err = finish(start(body))
    assert code == 1
    assert "ValueError('bug here')" in err
    assert "Traceback" in err


def test_known_errors_are_one_line_each() -> None:
    body = """async def die(error):
    raise error
async with asyncio.TaskGroup() as group:
    group.create_task(die(BrokerClosed("gone for good")))
    group.create_task(die(OwnError("the model is missing")))"""
    code, err = finish(start(body))
    assert code == 1
    assert "part failed: BrokerClosed: gone for good" in err
    assert "part failed: OwnError: the model is missing" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 2


def test_json_lines_hold_fields_and_traces() -> None:
    body = """import logging
logging.getLogger("x").info("hello %s", "you", extra={"response": "resp_1"})
raise KeyError("k")"""
    code, err = finish(start(body, "json"))
    assert code == 1
    hello, failed = map(json.loads, err.splitlines())
    assert hello["message"] == "hello you"
    assert hello["response"] == "resp_1"
    assert hello["process"] == "part"
    assert failed["level"] == "critical"
    assert "Traceback" in failed["trace"]


def test_health_and_metrics_over_http() -> None:
    body = """metrics.WORKER.requests.labels(model="m", outcome="completed").inc()
metrics.WORKER.first_token_s.labels(model="m").observe(0.012)
serving = asyncio.create_task(metrics.serve_http(
    "127.0.0.1", 0, lambda: (True, "well"), on_listening=lambda port: print(port, flush=True)))
await shutdown.requested.wait()
serving.cancel()
try:
    await serving
except asyncio.CancelledError:
    print("stopped", flush=True)"""
    process = start(body)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
        assert (answer.status, answer.read()) == (200, b"well\n")
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'headrace_worker_requests_total{model="m",outcome="completed"} 1.0' in text
    assert 'headrace_worker_time_to_first_token_seconds_bucket{le="0.015",model="m"} 1.0' in text
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "stopped" in out


def test_how_late_the_event_loop_is_can_be_seen() -> None:
    body = """import time
serving = asyncio.create_task(metrics.serve_http(
    "127.0.0.1", 0, lambda: (True, ""), on_listening=lambda port: print(port, flush=True)))
await asyncio.sleep(0.2)
time.sleep(0.4)
await shutdown.requested.wait()
serving.cancel()
await asyncio.wait({serving})"""
    process = start(body)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}/metrics"
    name, seen = "headrace_event_loop_lag_seconds", {}
    give_up_s = time.monotonic() + 30
    while seen.get(f"{name}_count", 0.0) == seen.get(f'{name}_bucket{{le="0.3"}}', 0.0):
        assert time.monotonic() < give_up_s, seen
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith(name))
        seen = {sample: float(value) for sample, value in pairs}
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    body = """import socket
with socket.create_server(("127.0.0.1", 0)) as taken:
    await metrics.serve_http("127.0.0.1", taken.getsockname()[1], lambda: (True, ""))"""
    code, err = finish(start(body))
    assert code == 1
    assert "cannot listen on 127.0.0.1:" in err
    assert "Traceback" not in err


def test_an_unhealthy_worker_answers_503() -> None:
    body = """serving = asyncio.create_task(metrics.serve_http(
    "127.0.0.1", 0, lambda: (False, "the engine hangs"), on_listening=lambda port: print(port, flush=True)))
await shutdown.requested.wait()
serving.cancel()
await asyncio.wait({serving})"""
    process = start(body)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10)
    assert caught.value.code == 503
    assert caught.value.read() == b"the engine hangs\n"
    caught.value.close()
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0
