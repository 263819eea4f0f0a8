"""The life of one job on one worker, as a pure state machine: events and the time in, effects out.

Whoever drives it carries out the effects in order and feeds back what they brought. Tokens do not pass
through here: between Submit and the end of the engine's work they flow past the machine to the log.
Rule numbers are those of broker/REPLYLOG.md. Must not know how anything is stored, sent or computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from schemas.errors import ERRORS, QueueAction
from schemas.reply import CloseReason
from workers.engine.base import RequestEnd

_UNREADABLE = "The job could not be read."
_TOO_LATE = "The deadline passed while the request was waiting."
_TOO_SLOW = "The deadline passed before the answer was complete."
_LOG_GONE = "The reply log dropped this response before it ended: it is too small for the load."
_POISON = "Every worker that tried this request failed; it will not be tried again."

RETRY_LOOK_S = 0.5  # a look at the lease that brought no answer is repeated so much later
QUARANTINE_PAUSE_S = 0.25  # a suspect that may not start beside another comes again so much later

Lease = Literal["mine", "lost", "ended", "gone", "unknown"]  # gone: there is no log any more
Outcome = Literal["completed", "incomplete", "failed", "cancelled", "refused", "handed_off", "fenced_off"]


class State(Enum):
    PULLED = "pulled"
    LATE = "late"  # past its deadline before it started: only its log is read
    CLAIMING = "claiming"
    RUNNING = "running"
    LEAVING = "leaving"  # being handed to another worker
    ENDING = "ending"  # its terminal is being stored
    OVER = "over"


# -- events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobRead:
    """The job decodes and is for this worker's model."""


@dataclass(frozen=True, slots=True)
class JobUnreadable:
    reason: str
    addressed: bool  # its reply log is known all the same


@dataclass(frozen=True, slots=True)
class LogRead:
    ended: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """``mine``: our Started stands, write behind it. ``closed``: what ended it was a Closed. ``later``: it
    may not start now, and nothing was written."""

    mine: bool
    ended: bool = False
    closed: bool = False
    later: bool = False


@dataclass(frozen=True, slots=True)
class EngineEnded:
    end: RequestEnd


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    lease: Lease


@dataclass(frozen=True, slots=True)
class Stored:
    """The terminal message is in the log."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The terminal message was refused: the fence is lost."""

    ended: bool


@dataclass(frozen=True, slots=True)
class HandedOff:
    done: bool  # False: not the writer any more, or not known


@dataclass(frozen=True, slots=True)
class Broken:
    """An effect could not be carried out, now or later."""


@dataclass(frozen=True, slots=True)
class Tick:
    """``due_s`` has come."""


@dataclass(frozen=True, slots=True)
class Nudged:
    """Somebody hints that the lease has changed."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """The same job has been delivered to this worker again."""


@dataclass(frozen=True, slots=True)
class DrainOver:
    """The worker stops and waits no longer."""


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """Nothing more will come from the engine."""


Event = (
    JobRead
    | JobUnreadable
    | LogRead
    | Claimed
    | EngineEnded
    | LeaseSeen
    | Stored
    | Refused
    | HandedOff
    | Broken
    | Tick
    | Nudged
    | Superseded
    | DrainOver
    | EngineFailed
)


# -- effects ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Brings LogRead."""


@dataclass(frozen=True, slots=True)
class ClaimLog:
    """Brings Claimed."""


@dataclass(frozen=True, slots=True)
class Submit:
    """To the engine, with the tokens that the log holds; EngineEnded comes some time."""


@dataclass(frozen=True, slots=True)
class Abort:
    """In the engine; tokens not yet sent are dropped."""


@dataclass(frozen=True, slots=True)
class Look:
    """At the lease. Brings LeaseSeen."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Tell the queue that the job is in progress."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Write Finished. Brings Stored or Refused."""

    end: RequestEnd


@dataclass(frozen=True, slots=True)
class Fail:
    """Write Failed. Brings Stored or Refused."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class CloseLog:
    reason: CloseReason
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Bury:
    """Copy the job to the dead letters."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class HandOff:
    """Send what the engine has made, stop it, and write Handoff. Brings HandedOff."""


@dataclass(frozen=True, slots=True)
class Ack:
    pass


@dataclass(frozen=True, slots=True)
class Nak:
    delay_s: float = 0.0


Effect = (
    ReadLog | ClaimLog | Submit | Abort | Look | Hold | Finish | Fail | CloseLog | Bury | HandOff | Ack | Nak
)

# -- the machine --------------------------------------------------------------------------------------

_S = State
TRANSITIONS: dict[State, dict[type[Event], frozenset[State]]] = {
    _S.PULLED: {JobRead: frozenset({_S.LATE, _S.CLAIMING}), JobUnreadable: frozenset({_S.OVER})},
    _S.LATE: {LogRead: frozenset({_S.OVER}), Broken: frozenset({_S.OVER})},
    _S.CLAIMING: {Claimed: frozenset({_S.RUNNING, _S.OVER}), Broken: frozenset({_S.OVER})},
    _S.RUNNING: {
        EngineEnded: frozenset({_S.ENDING, _S.OVER}),
        LeaseSeen: frozenset({_S.RUNNING, _S.OVER}),
        Tick: frozenset({_S.RUNNING, _S.ENDING}),
        Nudged: frozenset({_S.RUNNING}),
        Superseded: frozenset({_S.OVER}),
        DrainOver: frozenset({_S.LEAVING}),
        EngineFailed: frozenset({_S.OVER}),
        Broken: frozenset({_S.OVER}),
    },
    _S.LEAVING: {HandedOff: frozenset({_S.OVER}), Broken: frozenset({_S.OVER})},
    _S.ENDING: {Stored: frozenset({_S.OVER}), Refused: frozenset({_S.OVER}), Broken: frozenset({_S.OVER})},
    _S.OVER: {},
}


class IllegalTransition(RuntimeError):
    """The driver fed an event that cannot happen here, or the machine has a bug."""


class RunState:
    """``deadline_s`` and ``now_s`` are seconds of one monotonic clock. ``hold_interval_s``: how often the
    lease is checked and the job held. ``due_s``: when a Tick is wanted. ``outcome``: for metrics, set when
    over; None where this worker had no part in the end."""

    def __init__(self, *, deadline_s: float, hold_interval_s: float) -> None:
        self.state = State.PULLED
        self.outcome: Outcome | None = None
        self._deadline_s = deadline_s
        self._hold_interval_s = hold_interval_s
        self._look_s = 0.0
        self._pending_outcome: Outcome = "completed"

    @property
    def due_s(self) -> float | None:
        return min(self._look_s, self._deadline_s) if self.state is State.RUNNING else None

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        legal = TRANSITIONS[self.state].get(type(event))
        if legal is None:
            raise IllegalTransition(f"{type(event).__name__} while {self.state.value}")
        before = self.state
        effects = self._decide(event, now_s)
        if self.state not in legal:
            raise IllegalTransition(f"{type(event).__name__} led from {before.value} to {self.state.value}")
        return effects

    def _decide(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case JobRead():
                if now_s >= self._deadline_s:
                    return self._to(State.LATE, ReadLog())
                return self._to(State.CLAIMING, ClaimLog())
            case JobUnreadable(reason, addressed):
                bury = Bury("invalid_job", reason)
                if not addressed:
                    return self._over("refused", bury, Ack())
                return self._over("refused", bury, CloseLog("refused", "invalid_job", _UNREADABLE), Ack())
            case LogRead(ended):
                if ended:
                    return self._over(None, Ack())
                return self._over("failed", CloseLog("deadline", "deadline_exceeded", _TOO_LATE), Ack())
            case Claimed():
                return self._claimed(event, now_s)
            case EngineEnded(end):
                return self._engine_ended(end)
            case LeaseSeen(lease):
                return self._lease_seen(lease, now_s)
            case Tick():
                if now_s >= self._deadline_s:
                    self._pending_outcome = "failed"
                    return self._to(State.ENDING, Abort(), Fail("deadline_exceeded", _TOO_SLOW))
                return [Look()] if now_s >= self._look_s else []
            case Nudged():
                return [Look()]
            case Stored():
                return self._over(self._pending_outcome, Ack())
            case Refused(ended):
                return self._fenced_off(ended)
            case DrainOver():
                return self._to(State.LEAVING, HandOff())
            case HandedOff(done):
                return self._over("handed_off", Nak()) if done else self._over("fenced_off")
            case Superseded():
                return self._over("fenced_off", Abort())
            case EngineFailed():
                return self._over("failed", Nak())
            case Broken():
                return self._over("failed", *([Abort()] if self.state is State.RUNNING else []))

    def _claimed(self, event: Claimed, now_s: float) -> list[Effect]:
        if event.mine:
            self._look_s = now_s + self._hold_interval_s
            return self._to(State.RUNNING, Submit())
        if event.ended:
            return self._over("cancelled" if event.closed else None, Ack())
        if event.later:
            return self._over(None, Nak(QUARANTINE_PAUSE_S))
        return self._over("refused", Bury("poison", _POISON), CloseLog("refused", "poison", _POISON), Ack())

    def _engine_ended(self, end: RequestEnd) -> list[Effect]:
        if end.code is None:
            self._pending_outcome = "incomplete" if end.reason == "length" else "completed"
            return self._to(State.ENDING, Finish(end))
        if ERRORS[end.code].queue is QueueAction.NAK:  # not the request's fault: another worker may do better
            return self._over("failed", Abort(), Nak())
        self._pending_outcome = "failed"
        return self._to(State.ENDING, Fail(end.code, end.message))

    def _lease_seen(self, lease: Lease, now_s: float) -> list[Effect]:
        if lease == "mine":
            self._look_s = now_s + self._hold_interval_s
            return [Hold()]
        if lease == "unknown":
            self._look_s = now_s + min(RETRY_LOOK_S, self._hold_interval_s)
            return []
        if lease == "gone":  # a next writer would begin at token 0, and a reader take its tokens from n on
            close = CloseLog("refused", "internal_error", _LOG_GONE)
            return self._over("failed", Abort(), close, Ack())
        return [Abort(), *self._fenced_off(lease == "ended")]

    def _fenced_off(self, ended: bool) -> list[Effect]:
        """Rule 3: the job is another worker's now, and so are its acks, unless the response is over."""
        return self._over("cancelled", Ack()) if ended else self._over("fenced_off")

    def _to(self, state: State, *effects: Effect) -> list[Effect]:
        self.state = state
        return list(effects)

    def _over(self, outcome: Outcome | None, *effects: Effect) -> list[Effect]:
        self.outcome = outcome
        return self._to(State.OVER, *effects)
