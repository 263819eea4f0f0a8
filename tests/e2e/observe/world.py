"""A small Headrace that a real Prometheus watches, with people who use and abuse it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import nats

from deploy import keys
from schemas.config import Config, Nats
from schemas.quota import OwnQuota
from tests.e2e.observe.prometheus import Prometheus, programs
from tests.e2e.stack import Stack, wait_until
from tests.integration.conftest import free_port
from tests.integration.gateway.certificates import write_certificate
from tests.process_tree import descendants
from workers.engine.sim_words import FIRST_WORD_ID, WORDS

MODELS = ("river", "brook")
POISON = "mooncraft"  # a word whose token crashes the engine
SLOTS = 8
TENANTS = {
    "acme": OwnQuota(),
    "globex": OwnQuota(),
    "flood": OwnQuota(),
    "limited": OwnQuota(requests_per_minute=1),
}
ENV = {
    "HEADRACE_AUTH__METHODS": "keys",
    "HEADRACE_GATEWAY__DEADLINE_S": "60",
    "HEADRACE_GATEWAY__DISCONNECT_GRACE_S": "1",
    "HEADRACE_GATEWAY__SLOW_READER_S": "1",
    "HEADRACE_LIMITS__MIN_SHARE": "1",
    "HEADRACE_LIMITS__MAX_QUEUED_INTERACTIVE": "40",
    "HEADRACE_NATS__ACK_WAIT_S": "3",
    "HEADRACE_SIM__SLOTS": str(SLOTS),
    "HEADRACE_SIM__INTER_TOKEN_MS": "10",
    "HEADRACE_SIM__MEAN_OUTPUT_TOKENS": "0",
    "HEADRACE_SIM__CRASH_ON_TOKEN_ID": str(FIRST_WORD_ID + WORDS.index(POISON)),
    "HEADRACE_WORKER__PRESENCE_INTERVAL_S": "0.5",
}


class World:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.stack = Stack(folder / "data", model=MODELS, env=ENV)
        self.halting = threading.Event()
        self._threads: list[threading.Thread] = []
        self._numbers = count(1)
        self._exporter: subprocess.Popen[bytes] | None = None
        self._crawl: subprocess.Popen[bytes] | None = None
        try:
            config = Config(nats=Nats(url=self.stack.nats_url))
            self._keys = {
                name: keys.create(config, name, name="", quota=quota, lives_s=None)[1]
                for name, quota in TENANTS.items()
            }
            self._crawl_port = free_port()
            exporter = f"127.0.0.1:{free_port()}"
            self._exporter = subprocess.Popen(
                [
                    programs() / "prometheus-redis-exporter",
                    f"--redis.addr=redis://127.0.0.1:{self.stack.part('redis').port}",
                    f"--web.listen-address={exporter}",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self.prometheus = Prometheus(
                folder / "prometheus",
                {
                    "headrace-gateway": [f"127.0.0.1:{part.port}" for part in self.stack.parts("gateway")],
                    "headrace-worker": [
                        *(f"127.0.0.1:{part.port}" for part in self.stack.parts("worker")),
                        f"127.0.0.1:{self._crawl_port}",
                    ],
                    "valkey": [exporter],
                },
            )
        except BaseException:
            self._stop_exporter()
            self.stack.stop()
            raise

    def _stop_exporter(self) -> None:
        if self._exporter is not None:
            self._exporter.kill()
            self._exporter.wait()

    def end(self) -> None:
        self.halting.set()
        for thread in self._threads:
            thread.join()
        self.stop_crawl()
        self.prometheus.stop()
        self._stop_exporter()
        assert self.stack.stop() == 0, self.stack.output()

    # -- people -------------------------------------------------------------------------------------

    def headers(self, tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self._keys.get(tenant, tenant)}"}

    def ask(self, tenant: str, *, timeout_s: float = 30, **fields: Any) -> Mapping[str, Any]:
        """One whole answer, or an error."""
        body = {
            "model": MODELS[0],
            "input": f"question {next(self._numbers)}",
            "max_output_tokens": 50,
        } | fields
        url = f"{self.stack.url}/v1/responses"
        try:
            answer: Mapping[str, Any] = httpx.post(
                url, json=body, headers=self.headers(tenant), timeout=30
            ).json()
        except (httpx.TransportError, json.JSONDecodeError):
            return {}
        return answer

    def stream(self, tenant: str, *, leave_after: int = 0, **fields: Any) -> str:
        """Reads one to its end, or leaves after some events; its id."""
        body = {
            "model": MODELS[0],
            "input": f"question {next(self._numbers)}",
            "max_output_tokens": 50,
        } | fields
        url, response = f"{self.stack.url}/v1/responses", ""
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.Client(timeout=30) as client,
            client.stream("POST", url, json={**body, "stream": True}, headers=self.headers(tenant)) as answer,
        ):
            events = 0
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    events += 1
                    response = response or json.loads(line[6:]).get("response", {}).get("id", "")
                if leave_after and events >= leave_after:
                    break
        return response

    def resume(self, tenant: str, response: str) -> None:
        url = f"{self.stack.url}/v1/responses/{response}?stream=true&starting_after=5000"
        assert httpx.get(url, headers=self.headers(tenant), timeout=30).status_code == 200

    def unread(self, tenant: str, response: str) -> None:
        """A WebSocket that asks for the same again and again, and reads nothing; until it is cut off."""
        again = json.dumps({"type": "response.resume", "response_id": response}).encode()
        before = self._cut_off()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", self.stack.part("gateway").port))
            client.sendall(
                b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n"
                b"Authorization: " + self.headers(tenant)["authorization"].encode() + b"\r\n\r\n"
            )
            client.settimeout(1)
            frames = (b"\x81" + bytes([0x80 | len(again)]) + bytes(4) + again) * 100  # masked with zeros
            rest = frames
            with contextlib.suppress(ConnectionError):  # that is what it waits for
                while self._cut_off() == before:
                    with contextlib.suppress(TimeoutError):  # the gateway takes no more for now
                        while True:
                            rest = rest[client.send(rest) :] or frames
            wait_until(lambda: self._cut_off() > before, timeout_s=60, what="a slow reader cut off")

    def _cut_off(self) -> float:
        name = "headrace_gateway_slow_readers_closed_total"
        lines = self.stack.metrics("gateway").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name))

    def busy(self, people: int, do: Callable[[], object]) -> threading.Event:
        """So many do so again and again, until the event is set or the world ends."""
        stop = threading.Event()

        def again() -> None:
            while not (stop.is_set() or self.halting.is_set()):
                do()

        for number in range(people):
            self._threads.append(threading.Thread(target=again, name=f"client-{number}", daemon=True))
            self._threads[-1].start()
        return stop

    @contextlib.contextmanager
    def streams_run(self) -> Iterator[None]:
        """As many as a worker has slots, one after the other."""
        stop = self.busy(SLOTS, lambda: self.stream("acme", max_output_tokens=400))
        try:
            yield
        finally:
            stop.set()

    # -- faults -------------------------------------------------------------------------------------

    def start_crawl(self) -> None:
        """A worker of its own: the model ``crawl`` takes 1.5 s for a token."""
        self._crawl = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "worker"],
            env={
                **os.environ,
                **ENV,
                "HEADRACE_NATS__URL": self.stack.nats_url,
                "HEADRACE_WORKER__ENGINE": "sim",
                "HEADRACE_WORKER__PORT": str(self._crawl_port),
                "HEADRACE_SIM__NAME": "crawl",
                "HEADRACE_SIM__INTER_TOKEN_MS": "1500",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self.crawl_is_served(), timeout_s=30, what="the model crawl")

    def crawl_is_served(self) -> bool:
        listed = httpx.get(f"{self.stack.url}/v1/models", headers=self.headers("acme")).json()["data"]
        return any(model["id"] == "crawl" for model in listed)

    def stop_crawl(self) -> None:
        """Its host is gone: guardian and engine process at once."""
        if self._crawl is not None:
            for pid in [self._crawl.pid, *descendants(self._crawl.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._crawl.wait()
            self._crawl = None

    @contextlib.contextmanager
    def gateway_over_tls(self) -> Iterator[None]:
        """One more, whose certificate ends in two days."""
        cert, key = write_certificate(self._folder, lives=timedelta(days=2))
        port, redis_port = free_port(), self.stack.part("redis").port
        log = self._folder / "gateway-over-tls.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", "gateway"],
                env={
                    **os.environ,
                    **ENV,
                    "HEADRACE_NATS__URL": self.stack.nats_url,
                    "HEADRACE_REDIS__URL": f"redis://127.0.0.1:{redis_port}/0",
                    "HEADRACE_SECURITY__SECRET": "of this gateway alone",
                    "HEADRACE_GATEWAY__PORT": str(port),
                    "HEADRACE_GATEWAY__TLS_CERT": str(cert),
                    "HEADRACE_GATEWAY__TLS_KEY": str(key),
                },
                stdout=out,
                stderr=out,
            )
        try:
            with self.prometheus.watching_over_tls("headrace-gateway", f"127.0.0.1:{port}"):
                yield
        finally:
            process.terminate()
            assert process.wait(30) == 0, log.read_text()

    @contextlib.contextmanager
    def paused(self, pid: int) -> Iterator[None]:
        """It hangs, with all its connections open."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def answers(self) -> bool:
        return bool(self.ask("acme", max_output_tokens=2).get("output"))

    def nats_publish(self, subject: str, data: bytes) -> None:
        async def publish() -> None:
            client = await nats.connect(self.stack.nats_url)
            await client.publish(subject, data)
            await client.close()

        asyncio.run(publish())

    def empty_stream(self, stream: str) -> None:
        async def empty() -> None:
            client = await nats.connect(self.stack.nats_url)
            answer = await client.request(f"$JS.API.STREAM.PURGE.{stream}")
            assert "error" not in json.loads(answer.data), answer.data
            await client.close()

        asyncio.run(empty())

    def shrink_stream(self, stream: str, *, fill: float) -> None:
        """So that what it holds is that share of what it may."""

        async def shrink() -> None:
            client = await nats.connect(self.stack.nats_url)
            info = json.loads((await client.request(f"$JS.API.STREAM.INFO.{stream}")).data)
            config = {**info["config"], "max_bytes": int(info["state"]["bytes"] / fill)}
            answer = await client.request(f"$JS.API.STREAM.UPDATE.{stream}", json.dumps(config).encode())
            assert "error" not in json.loads(answer.data), answer.data
            await client.close()

        asyncio.run(shrink())

    def crawl_hiccups(self, times: int) -> None:
        """Its engine process stops for a third of a second, again and again."""
        assert self._crawl is not None
        (pid,) = descendants(self._crawl.pid)
        for _ in range(times):
            with self.paused(pid):
                time.sleep(0.3)
            time.sleep(0.05)

    def until(self, expression: str) -> None:
        """It has a value."""
        wait_until(lambda: bool(self.prometheus.query(expression)), timeout_s=30, what=expression)

    def until_fired(self, *alerts: str, timeout_s: float = 40) -> None:
        wanted = set(alerts)

        def all_fired() -> bool:
            return wanted <= self.prometheus.fired()

        try:
            wait_until(all_fired, timeout_s=timeout_s, what=f"{alerts} fire")
        except AssertionError:
            missing = sorted(wanted - self.prometheus.fired())
            raise AssertionError(f"did not fire within {timeout_s:.0f} s: {missing}") from None
