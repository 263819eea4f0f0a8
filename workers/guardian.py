"""``headrace worker``: the guardian of one worker process. It starts the process, sees it die or hang, gives
back at once the jobs that it held, ends what it left behind, and starts it again.

It loads no engine, so nothing that an engine does can take it along; what it decides is in ``watch``. Must
import little: the worker process starts when this module is loaded, and loads what takes long by itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from broker.child_process import ChildProcess, describe_exit
from schemas.config import Config
from workers.lifeline import PIPE_BYTES
from workers.watch import TICK_S, Again, Exit, Restarts, Watch

if TYPE_CHECKING:
    from workers.give_back import Returns

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16  # a pipe's worth
LISTENS = 2  # a tick; each line at once would wake the guardian twice a job, once before its first token
NAK_FIRST_S = 0.5  # the jobs before the new process, which takes the machine's time
EXIT_LIMIT_S = 2.0


def run(config: Config) -> int:
    """Until the worker has stopped for good; the exit code, which is the worker's (128 + n: signal n)."""
    return asyncio.run(Guardian(config).run())  # not uvloop's: it starts no process in a group of its own


class Guardian:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._child: ChildProcess | None = None
        self._watch = Watch(config.worker.hang_timeout_s)  # of the present worker process
        self._hear: Callable[[], None] = _nothing  # takes in what that has told
        self._begun = asyncio.Event()  # the first worker process has been started
        self._returns: asyncio.Future[Returns]
        self._stopping = asyncio.Event()
        self._restarts = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._returns = loop.create_future()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(signum, self._stop)
        async with asyncio.TaskGroup() as group:
            connection = group.create_task(self._keep_connected(), name="nats")
            try:
                return await self._guard(group)
            finally:
                connection.cancel()

    def _stop(self) -> None:
        """The first time the worker may finish what it has; the second time it ends at once, as it does while
        it has nothing yet: an engine that loads would not listen."""
        self._hear()
        if self._child is not None:
            if self._stopping.is_set() or not self._watch.was_ready:
                self._child.kill()
            else:
                self._child.terminate()
        self._stopping.set()

    async def _keep_connected(self) -> None:
        await self._begun.wait()
        from broker.process import set_up_logging  # these take half a second, and so does the worker process
        from workers.give_back import Returns

        set_up_logging("guardian", self._config.logging)
        returns = Returns(self._config.nats)
        self._returns.set_result(returns)
        await returns.keep_connected()

    async def _guard(self, group: asyncio.TaskGroup) -> int:
        restarts = Restarts()
        while True:
            watch = self._watch = Watch(self._config.worker.hang_timeout_s)
            try:
                status, ready_for_s = await self._live(watch, group)
            except OSError as error:  # no memory, no descriptor: it may pass
                log.error("the worker process cannot be started: %s", error)
                status, ready_for_s = 1, 0.0
            giving = group.create_task(self._give_back(watch), name="give-back")
            await asyncio.wait({giving}, timeout=NAK_FIRST_S)
            verdict = restarts.after(status, watch, ready_for_s, stopping=self._stopping.is_set())
            how = "hung and was killed" if watch.hung else describe_exit(status)
            if isinstance(verdict, Again):
                log.error("the worker process %s with %d jobs; it starts again", how, len(watch.line.held))
                self._restarts += 1
                if await self._stopping_within(verdict.wait_s):
                    verdict = Exit(0)
            elif verdict.code != 0:
                log.error("the worker process %s", how)
            if isinstance(verdict, Exit):
                await asyncio.wait({giving}, timeout=EXIT_LIMIT_S)
                giving.cancel()
                return verdict.code

    async def _live(self, watch: Watch, group: asyncio.TaskGroup) -> tuple[int, float]:
        """One life of the worker process: its exit status, and for how many seconds it had been ready."""
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with suppress(OSError):  # more pipes than this user may have of that size
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        ready_at_s = 0.0

        def hear() -> None:
            nonlocal ready_at_s
            with suppress(BlockingIOError):
                while data := os.read(reading, READ_BYTES):
                    watch.line.feed(data)
            if watch.was_ready and not ready_at_s:
                ready_at_s = loop.time()

        try:
            try:
                # -P: a folder called workers where the user stands is not ours.
                argv = (sys.executable, "-P", "-m", "workers", str(writing), str(self._restarts))
                given = msgspec.json.encode(self._config)  # not in the arguments, which everyone can read
                child = await ChildProcess.start(argv, {}, None, given=given, pass_fds=(writing,))
            finally:
                os.close(writing)
            self._child = child
            if self._stopping.is_set():  # asked while the process was being made
                child.terminate()
            self._hear = hear
            self._begun.set()
            ticking = group.create_task(self._tick(watch, child, hear), name="tick")
            status = await child.wait()
            ticking.cancel()
            hear()  # what it wrote before it died
        finally:
            self._child, self._hear = None, _nothing
            os.close(reading)
        return status, loop.time() - ready_at_s if ready_at_s else 0.0

    async def _tick(self, watch: Watch, child: ChildProcess, hear: Callable[[], None]) -> None:
        while not watch.tick():
            for _ in range(LISTENS):
                await asyncio.sleep(TICK_S / LISTENS)
                hear()
        log.error("the worker process has been silent for %g s: it is killed", watch.patience_s)
        child.kill()

    async def _give_back(self, watch: Watch) -> None:
        worker = watch.line.worker
        if worker is not None:
            until_s = watch.owed_until_s(self._config.nats.ack_wait_s)
            await (await asyncio.shield(self._returns)).give_back(worker, watch.owed(), until_s)

    async def _stopping_within(self, wait_s: float) -> bool:
        try:
            async with asyncio.timeout(wait_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True


def _nothing() -> None:
    pass
