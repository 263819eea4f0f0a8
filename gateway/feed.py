"""One response's part in another one's log: what the leader's log brings is given on to who joined it.

No task and no subscription of its own, however many have joined. Must not know what becomes of a response
whose leader has ended.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.live import Live


class Feed:
    """``on_over`` is called once: the leader has ended, or is lost to this gateway."""

    def __init__(self, leader: Live, joined: Live, *, on_over: Callable[[], None]) -> None:
        self._leader = leader
        self._joined = joined
        self._on_over = on_over
        self._over = False

    def open(self) -> None:
        """A leader that is followed is attended: its own client may go."""
        self._leader.attach(self)
        self.wake()

    def wake(self) -> None:
        if self._over:
            return
        self._joined.lend(self._leader)
        if self._leader.end is not None or self._leader.lost is not None:
            self._over = True
            self._on_over()

    def close(self) -> None:
        self._over = True
        self._leader.detach(self)
