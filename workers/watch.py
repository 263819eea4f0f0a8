"""What a guardian decides, without doing it: when a worker process hangs, which of its jobs to give back,
and whether it is started again. Pure: lines, ticks and the time come in."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from broker.backoff import Backoff
from workers.lifeline import BEAT_S, LifelineReader

TICK_S = BEAT_S
LEAST_SILENCE_S = 2.0  # a busy event loop is no hang, whatever is configured


class Watch:
    """Over one life of the worker process."""

    def __init__(self, hang_timeout_s: float) -> None:
        self.line = LifelineReader()
        self.hung = False
        self.patience_s = max(hang_timeout_s, LEAST_SILENCE_S)
        self._silent_ticks = 0
        self._beats_seen = 0

    @property
    def was_ready(self) -> bool:
        return self.line.worker is not None

    def tick(self) -> bool:
        """Every ``TICK_S`` of a guardian that is awake: its own sleep, and the whole machine's, does not
        count against the worker. True: it hangs. Before it is ready it may load an engine for minutes."""
        heard = self.line.beats > self._beats_seen or not self.was_ready
        self._beats_seen = self.line.beats
        self._silent_ticks = 0 if heard else self._silent_ticks + 1
        self.hung = self._silent_ticks * TICK_S >= self.patience_s
        return self.hung

    def owed(self) -> list[str]:
        """Ack subjects of the jobs to nak. What hung was noticed long ago by the watchers of its streams,
        and a nak would hit the next writer."""
        return [] if self.hung else list(self.line.held)

    def owed_until_s(self, ack_wait_s: float) -> float:
        """On the monotonic clock. It held its jobs three times in ack_wait, so until this much after its
        last sign of life none was delivered anew by time alone. Where only the guardian had no connection,
        the watchers may have been quicker: a nak then hits the next writer, and costs one more change."""
        return self.line.alive_s + ack_wait_s * 2 / 3


@dataclass(frozen=True, slots=True)
class Again:
    """Start the worker process again after so many seconds."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Exit:
    """The guardian ends, too, with this exit code."""

    code: int


class Restarts:
    """A worker that has never been ready is not started again: whoever started the guardian is to know."""

    def __init__(self) -> None:
        self._backoff = Backoff()
        self._settled = False

    def after(self, status: int, watch: Watch, ready_for_s: float, *, stopping: bool) -> Again | Exit:
        """``status``: of the process, negative for the signal that killed it. The first crash in a row costs
        no waiting, for most crashes are the first."""
        self._settled |= watch.was_ready
        if stopping and status in (-signal.SIGTERM, -signal.SIGKILL) and not watch.was_ready:
            return Exit(0)  # it had nothing to finish, and may not have been able to listen
        if stopping or status == 0 or not self._settled:
            return Exit(status if status >= 0 else 128 - status)
        wait_s = self._backoff.crashed(ready_for_s)
        return Again(0.0 if self._backoff.crashes == 1 else wait_s)
