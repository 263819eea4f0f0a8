"""Gateway processes that share a port: started, killed, drained."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, Process, gateway
from tests.process_tree import children, is_running

LIMIT_S = 30
COUNT = 2
MOST_SOCKETS = 200  # the kernel deals connections by hash: by then every process has one


@pytest.fixture(scope="module")
def shared(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    sim_worker: Process,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """The last test ends it."""
    folder = tmp_path_factory.mktemp("shared")
    with gateway(shared_nats_server, shared_redis_server, folder, processes=COUNT) as running:
        wait_until(lambda: len(up(running)) == COUNT, "all are up")
        yield running


def wait_until(condition: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up_s, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.05)


def samples(served: Gateway, name: str) -> dict[str, float]:
    """Of each process."""
    text = httpx.get(f"{served.url}/metrics", timeout=LIMIT_S).text
    return {
        sample.labels["process"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def up(served: Gateway) -> set[str]:
    return {number for number, value in samples(served, "headrace_gateway_process_up").items() if value == 1}


def connect_to_all(served: Gateway, stack: contextlib.ExitStack) -> list[ClientConnection]:
    sockets: list[ClientConnection] = []
    while len(sockets) < MOST_SOCKETS:
        sockets += [stack.enter_context(connect(f"{served.ws_url}/v1/responses")) for _ in range(5)]
        open_ = samples(served, "headrace_gateway_connections")
        if len(open_) == COUNT and all(open_.values()):
            assert sum(open_.values()) == len(sockets)
            return sockets
    raise AssertionError(f"the port is not shared: {open_}")


def answers(served: Gateway) -> bool:
    return httpx.get(f"{served.url}/healthz").status_code == 200


def test_one_that_is_killed_is_started_again_and_the_port_stays_open(shared: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        sockets = connect_to_all(shared, stack)
        before = children(shared.pid)
        assert len(before) == COUNT
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: not is_running(before[0]), "it is dead")
        assert all(answers(shared) for _ in range(20))
        wait_until(lambda: len(children(shared.pid)) == COUNT and len(up(shared)) == COUNT, "all are back")
        assert len(set(children(shared.pid)) - set(before)) == 1
        assert "was killed by SIGKILL" in shared.output
        lost = 0
        for socket in sockets:
            try:
                socket.send('{"type":"ping"}')
                assert json.loads(socket.recv(LIMIT_S))["type"] == "pong"
            except ConnectionClosed:
                lost += 1
        assert 0 < lost < len(sockets)


def test_a_port_that_is_shared_is_not_free_for_another(shared: Gateway, tmp_path: Path) -> None:
    environ = {"HEADRACE_GATEWAY__PORT": str(shared.port), "HEADRACE_GATEWAY__PROCESSES": "2"}
    other = Process("deploy.gateways", tmp_path / "other.log", environ)
    try:
        assert other.wait() == 1
    finally:
        other.end()
    assert f"cannot listen on 127.0.0.1:{shared.port}" in other.output


def test_all_are_drained_and_say_so(shared: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        sockets = connect_to_all(shared, stack)
        processes = children(shared.pid)
        shared.terminate()
        for socket in sockets:
            assert json.loads(socket.recv(LIMIT_S))["type"] == "session.going_away"
            with pytest.raises(ConnectionClosed):
                socket.recv(LIMIT_S)
            assert socket.close_code == 1012
        assert shared.wait() == 0
    assert not [pid for pid in processes if is_running(pid)]
    assert "Traceback" not in shared.output


def test_none_outlives_its_parent_and_the_next_one_removes_its_folder(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, sim_worker: Process, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    servers, extra = (shared_nats_server, shared_redis_server), {"TMPDIR": str(scratch)}
    with gateway(*servers, tmp_path, extra=extra, processes=COUNT) as running:
        wait_until(lambda: len(children(running.pid)) == COUNT, "all are started")
        processes = children(running.pid)
        running.kill()
        wait_until(lambda: not any(map(is_running, processes)), "all are gone")
    (left,) = scratch.iterdir()
    with gateway(*servers, tmp_path, extra=extra, processes=COUNT) as running:
        assert left not in list(scratch.iterdir())
        running.terminate()
        assert running.wait() == 0
    assert list(scratch.iterdir()) == []
