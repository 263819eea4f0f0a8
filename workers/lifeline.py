"""What a worker process tells its guardian: one short line at a time over a pipe, whose bytes outlive the
process that wrote them, kill -9 included.

    ready WORKER     it serves, and from now on shows that it lives
    alive SECONDS    twice a second, the monotonic clock of this machine
    took ACK         a job was pulled; ACK is its ack subject
    done ACK         its run is over: acked, given back, or another worker's
    anew             lines were dropped before this one: what it holds is not known any more

Must not know what either side makes of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import suppress
from typing import Final

from schemas.ids import WorkerId

log = logging.getLogger(__name__)

BEAT_S: Final = 0.5
PIPE_BYTES: Final = 1 << 20  # 10,000 jobs between two looks of the guardian
_ANEW: Final = "anew\n"


class Lifeline:
    """The worker's end. The guardian looks several times a second and is woken by nothing: a write costs its
    system call. It never blocks: at a full pipe (a guardian that is stopped) lines are dropped, and the jobs
    that were on them wait for the watchers or ack_wait. ``fd`` None: nobody guards this worker."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._dropped = False
        if fd is not None:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)

    def ready(self, worker: WorkerId) -> None:
        self._tell(f"ready {worker}")

    def took(self, ack_subject: str) -> None:
        self._tell(f"took {ack_subject}")

    def done(self, ack_subject: str) -> None:
        self._tell(f"done {ack_subject}")

    async def beat(self) -> None:
        """Never returns."""
        while True:
            self._tell(f"alive {time.monotonic():.3f}")
            await asyncio.sleep(BEAT_S)

    def _tell(self, line: str) -> None:
        if self._fd is None:
            return
        text = f"{_ANEW}{line}\n" if self._dropped else f"{line}\n"
        try:
            os.write(self._fd, text.encode())  # less than PIPE_BUF: all of it or nothing
        except OSError as error:  # full; or the guardian is gone, and the kernel is about to end us
            if not self._dropped:
                log.warning("the guardian does not listen: %s", error)
            self._dropped = True
        else:
            self._dropped = False


class LifelineReader:
    """The guardian's end, as far as it was read. ``worker``: None until it is ready. ``held``: ack subjects
    of the jobs that it has. ``alive_s``: when it last lived, on the monotonic clock. ``beats``: how often
    it has said so."""

    def __init__(self) -> None:
        self.worker: WorkerId | None = None
        self.held: dict[str, None] = {}
        self.alive_s = 0.0
        self.beats = 0
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            with suppress(ValueError):  # of a newer version, installed while this guardian ran
                self._take(*line.decode().split(" ", 1))

    def _take(self, word: str, value: str = "") -> None:
        match word:
            case "ready":
                self.worker = WorkerId(value)
            case "alive":
                self.alive_s = float(value)
                self.beats += 1
            case "took":
                self.held[value] = None
            case "done":
                self.held.pop(value, None)
            case "anew":
                self.held.clear()
            case _:
                pass  # of a newer version, too
