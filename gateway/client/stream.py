"""One response as its client follows it, over however many connections. Pure: events and the time come in,
what to send and what to show come out. Must not know sockets, tasks or clocks.

Each time the stream is attached to a connection it gets a lane, a ``stream_id`` never used before, and hears
only that one. Numbers alone would not do: a delta that was merged for an earlier follower overlaps those that
the present one gets.
"""

from __future__ import annotations

from gateway.client.backoff import Backoff
from gateway.client.errors import JsonObject, ResponseError

TERMINALS = frozenset({"response.completed", "response.incomplete", "response.failed"})


class StreamState:
    """``create``: the ``response.create`` that begins it, with its idempotency key; or ``response_id`` of a
    response that exists, and ``after``, the last number seen of it (-1: none). Times are seconds of any
    steady clock. ``patience_s``: how long it may wait in all, for a connection or to try again after a
    refusal, without hearing anything of its response."""

    def __init__(
        self,
        *,
        backoff: Backoff,
        patience_s: float,
        now: float,
        create: JsonObject | None = None,
        response_id: str | None = None,
        after: int = -1,
    ) -> None:
        assert (create is None) != (response_id is None)
        self.response_id = response_id
        self.after = after
        self.lane: str | None = None  # None: it waits to be attached
        self.over = False
        self.error: Exception | None = None  # how it ended, if not by a terminal event or by being left
        self.terminal: JsonObject | None = None
        self.recovering = False  # it was torn off, and has heard nothing since
        self._create = create
        self._creates_sent = 0
        self._cancelling = False
        self._backoff = backoff
        self._patience_left_s = self._patience_s = patience_s
        self._waiting_since = now
        self._retry_at = now
        self._refusal: ResponseError | None = None

    # -- attaching ------------------------------------------------------------------------------------

    def attach(self, lane: str, now: float) -> list[JsonObject]:
        """What to send on the connection on which it now hears ``lane``. Also moves it from another one."""
        assert not self.over
        if self.lane is None:
            self._patience_left_s -= now - self._waiting_since
        else:
            self.recovering = True
        self.lane = lane
        if self.response_id is None:
            assert self._create is not None
            self._creates_sent += 1
            return [{**self._create, "stream_id": lane}]
        resume = {
            "type": "response.resume",
            "response_id": self.response_id,
            "starting_after": self.after,
            "stream_id": lane,
        }
        return [resume, *self._cancel()]

    def lost(self, lane: str, now: float) -> None:
        """The connection of this lane is gone, or is to be left for another."""
        if self._hears(lane):
            self.recovering = True
            self._wait(now, 0.0)

    def due(self, now: float) -> bool:
        """Whether it wants to be attached."""
        return self.waiting and now >= self._retry_at

    def exhausted(self, now: float) -> bool:
        return self.waiting and now >= self._gives_up_at

    def next_look(self, *, connected: bool) -> float | None:
        """When ``due`` or ``exhausted`` turn true by time alone; None: not now."""
        if not self.waiting:
            return None
        return min(self._retry_at, self._gives_up_at) if connected else self._gives_up_at

    @property
    def waiting(self) -> bool:
        return self.lane is None and not self.over

    @property
    def _gives_up_at(self) -> float:
        return self._waiting_since + self._patience_left_s

    # -- what arrives ---------------------------------------------------------------------------------

    def take(self, lane: str, event: JsonObject) -> JsonObject | None:
        """The event if its reader has not had it, without the ``stream_id``, which is this client's own."""
        if not self._hears(lane):
            return None
        self._note_progress()
        if self.response_id is None and isinstance(response := event.get("response"), dict):
            self.response_id = response["id"]
        if event.get("type") in TERMINALS:
            self.over, self.terminal = True, event
        number = event.get("sequence_number")
        if number is not None:
            is_position = number == self.after and event.get("type") == "response.queued"
            if number <= self.after and not is_position:
                return None
            self.after = number
        return {key: value for key, value in event.items() if key != "stream_id"}

    def refused(self, lane: str, error: ResponseError, now: float) -> None:
        """An error that answers what was sent on this lane."""
        if not self._hears(lane):
            return
        if self._is_passing(error):
            self._refusal = error
            self._wait(now, self._backoff.next_s(error.retry_after_s or 0.0))
        else:
            self.fail(error)

    def _is_passing(self, error: ResponseError) -> bool:
        if error.retry_after_s is not None:
            return True
        if self.response_id is not None:  # accepted: it has an end, and whoever is at fault, it can be had
            return error.status >= 500
        # The turn that keeps the conversation busy may be this one, sent before on a connection that broke.
        return error.code == "conversation_busy" and self._creates_sent > 1

    # -- its reader -----------------------------------------------------------------------------------

    def cancel(self) -> list[JsonObject]:
        """Ask for the end of an accepted response, again on every later connection. What to send now."""
        assert self.response_id is not None
        self._cancelling = True
        return self._cancel() if self.lane is not None and not self.over else []

    def _cancel(self) -> list[JsonObject]:
        if not self._cancelling:
            return []
        return [{"type": "response.cancel", "response_id": self.response_id, "event_id": self.lane}]

    def leave(self) -> None:
        """Nobody reads it any more."""
        self.over = True

    def give_up(self, trouble: ResponseError) -> None:
        """Patience is used up; ``trouble`` of the connection tells why, unless a refusal does."""
        self.fail(self._refusal or trouble)

    def fail(self, error: Exception) -> None:
        if not self.over:
            self.over, self.error = True, error

    # -- what all of them share --------------------------------------------------------------------------

    def _hears(self, lane: str) -> bool:
        return lane == self.lane and not self.over

    def _note_progress(self) -> None:
        self.recovering = False
        self._refusal = None
        self._patience_left_s = self._patience_s
        self._backoff.reset()

    def _wait(self, now: float, delay_s: float) -> None:
        self.lane = None
        self._waiting_since = now
        self._retry_at = now + delay_s
