"""``headrace top`` as a program: looks again and again and draws, until q or Ctrl-C; or looks once. Goes on
through a loss of the broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.live import Live

from broker.connection import Broker, BrokerClosed, BrokerUnavailable
from deploy.top.screen import screen
from deploy.top.snapshot import Snapshot
from deploy.top.watch import Watch
from schemas.config import Nats

CONNECT_S = 5.0  # someone sits and waits
BETWEEN_LOOKS_S = 1.0  # of --once: rates need two

T = TypeVar("T")


class TopError(Exception):
    """The message is for the operator."""


def show_once(config: Nats, *, as_json: bool, console: Console) -> None:
    """Raises ``TopError``: also where the broker does not answer any more."""

    async def look_twice(_: Broker, watch: Watch) -> Snapshot:
        await watch.look()
        await asyncio.sleep(BETWEEN_LOOKS_S)
        return await watch.look()

    snapshot = _with_watch(config, look_twice)
    if snapshot.error:
        raise TopError(snapshot.error)
    if as_json:
        console.out(msgspec.json.format(msgspec.json.encode(snapshot)).decode(), highlight=False)
    else:
        console.print(screen(snapshot, console.width, None))


def show_live(config: Nats, interval_s: float, console: Console) -> None:
    """Until q, Ctrl-C or SIGTERM. Raises ``TopError``."""

    async def go_on(broker: Broker, watch: Watch) -> None:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            await _Display(broker, watch, interval_s, live).run()

    _with_watch(config, go_on)


def _with_watch(config: Nats, use: Callable[[Broker, Watch], Awaitable[T]]) -> T:
    logging.getLogger().addHandler(logging.NullHandler())  # a line in the middle of the screen tears it

    async def run() -> T:
        broker = await Broker.connect(config, name="top", wait_s=CONNECT_S)
        try:
            async with Watch.on(broker) as watch:
                return await use(broker, watch)
        finally:
            await broker.close()

    try:
        return asyncio.run(run())
    except (BrokerClosed, BrokerUnavailable) as error:
        raise TopError(str(error)) from error


class _Display:
    def __init__(self, broker: Broker, watch: Watch, interval_s: float, live: Live) -> None:
        self._broker = broker
        self._watch = watch
        self._interval_s = interval_s
        self._live = live
        self._snapshot = watch.stale("the first look is under way")
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Raises ``BrokerClosed``."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, self._stop.set)
        loop.add_signal_handler(signal.SIGWINCH, self._draw)
        gone: BaseException | None = None
        with _keys(loop, self._key):
            try:
                async with asyncio.TaskGroup() as tasks:
                    looking = tasks.create_task(self._look_on(), name="look")
                    await self._stop.wait()
                    looking.cancel()
            except* BrokerClosed as group:
                gone = group.exceptions[0]
        if gone is not None:
            raise gone

    def _key(self, key: bytes) -> None:
        if key in (b"q", b"Q", b""):
            self._stop.set()

    async def _look_on(self) -> None:
        while True:
            self._snapshot = await self._watch.look()
            self._draw()
            if self._snapshot.connected:
                await asyncio.sleep(self._interval_s)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._broker.wait_connected()

    def _draw(self) -> None:
        size = self._live.console.size
        self._live.update(screen(self._snapshot, size.width, size.height), refresh=True)


@contextlib.contextmanager
def _keys(loop: asyncio.AbstractEventLoop, on_key: Callable[[bytes], None]) -> Iterator[None]:
    """Each key as it is pressed, unseen, where there is a keyboard; an empty one at its end."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, lambda: on_key(os.read(keyboard, 1)))
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
