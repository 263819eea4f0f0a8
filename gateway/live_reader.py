"""One client's place in a response, and what is new since then. Must not know how its messages arrive."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.generation import Started, Update
from schemas.errors import HeadraceError

if TYPE_CHECKING:
    from gateway.live import Live


class LiveReader:
    """One client's place in a response. One task at a time may wait in ``next``."""

    __slots__ = ("_ended", "_live", "_lost", "_position", "_queued", "_started", "_waiter")

    def __init__(self, live: Live, position: int) -> None:
        self._live = live
        self._position = position
        self._queued = live.queued  # what the response's first event says
        self._started = False
        self._ended = False
        self._lost: HeadraceError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> list[Update]:
        """Wait for news: ``Queued`` as it changes until ``Started``, which comes once, ``Text`` merged since
        the last call, ``Ended`` last. Empty after ``Ended`` was given. Raises ``HeadraceError`` where the
        response is lost to here, or the reader was told to ``lose`` it."""
        while not (updates := self._take()) and not self._ended:
            lost = self._lost or self._live.lost
            if lost is not None:
                raise lost
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return updates

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lose(self, error: HeadraceError) -> None:
        """This reader alone is told so when it has been given what there is."""
        self._lost = error
        self.wake()

    def close(self) -> None:
        """Detach; safe to call twice."""
        self._live.detach(self)

    def _take(self) -> list[Update]:
        if self._ended:
            return []
        updates: list[Update] = []
        live = self._live
        if live.queued is not self._queued and not live.started and live.end is None:
            self._queued = live.queued
            updates += [live.queued] if live.queued else []
        if live.started and not self._started:
            self._started = True
            updates.append(Started())
        text = live.text_since(self._position)
        if text is not None:
            self._position = text.end_token
            live.read_tokens = max(live.read_tokens, min(text.end_token, len(live.log.ids)))
            updates.append(text)
        if live.end is not None:
            self._ended = True
            live.read_tokens = max(live.read_tokens, live.end.total)
            updates.append(live.end)
        return updates
