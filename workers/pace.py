"""When the next round of token messages may go out: at once, unless this process or the broker lags.

What comes meanwhile is merged, so that everyone behind has a message less to write, store or read. A system
that keeps up never waits: each step's tokens travel alone. Pure.
"""

from __future__ import annotations

import math

SHARE = 2.0  # pauses of so many times what the round took: publishing gets a third of the time at most
PAUSE_S = 0.001  # a shorter one is not worth its timer, which ticks in milliseconds
LAG_S = 0.005  # an ack that much later than usual: somebody on the way is behind
LAG_LIMIT_S = 0.05  # a message waits no longer for that
FORGET = 1.01  # per ack: a way that has become longer is the usual one after some hundred acks


class Pace:
    """Times are seconds, of one clock."""

    def __init__(self) -> None:
        self._usual_s = math.inf  # from a message to its ack
        self._lag_s = 0.0
        self._lags_until_s = -math.inf

    def acked(self, waited_s: float, now_s: float) -> None:
        """An ack came. What it tells holds for a moment only: twice the lag."""
        self._usual_s = min(waited_s, self._usual_s * FORGET)
        lag_s = waited_s - self._usual_s
        if lag_s < LAG_S:
            self._lags_until_s = -math.inf
        else:
            self._lag_s = min(lag_s, LAG_LIMIT_S)
            self._lags_until_s = now_s + 2 * lag_s

    def reconnected(self) -> None:
        """Another server, another way."""
        self._usual_s = math.inf
        self._lags_until_s = -math.inf

    def pause_s(self, took_s: float, now_s: float) -> float:
        """How long to wait behind a round that took ``took_s``; 0: not at all."""
        pause_s = SHARE * took_s
        if now_s < self._lags_until_s:
            pause_s = max(pause_s, self._lag_s)
        return pause_s if pause_s >= PAUSE_S else 0.0
