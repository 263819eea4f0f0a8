"""One client's place in a response, and what is new since then. Must not know how its messages arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.metrics import UPDATE_TOKENS, UPDATES
from gateway.generation import Parsed, Started, Text, Update
from gateway.tick import Tick
from schemas.errors import HeadraceError

if TYPE_CHECKING:
    from gateway.live import Live

_UPDATES, _TOKENS = UPDATES.labels(), UPDATE_TOKENS.labels()


class LiveReader:
    """One client's place in a response. One task at a time may wait in ``next``."""

    __slots__ = (
        "_due",
        "_ended",
        "_live",
        "_lost",
        "_position",
        "_queued",
        "_show",
        "_started",
        "_tick",
        "_waiter",
    )

    def __init__(self, live: Live, position: int) -> None:
        self._live = live
        self._position = position
        self._queued = live.queued  # what the response's first event says
        self._started = False
        self._ended = False
        self._lost: HeadraceError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._tick: Tick | None = None
        self._show: Callable[[Text | Parsed], bool] | None = None
        self._due = False  # the tick will call

    def divert(self, tick: Tick, show: Callable[[Text | Parsed], bool]) -> None:
        """Give plain text to ``show`` in the tick that brings it, past ``next`` and its task; but only while
        that waits, so that everything keeps its order. Where ``show`` cannot take it (False, and nothing
        done) it comes by ``next``, merged with what follows until then."""
        self._tick, self._show = tick, show

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
        if self._due or self._waiter is None or self._waiter.done():
            return
        if self._tick is None or not self._started:
            self._waiter.set_result(None)
        else:
            self._due = True
            self._tick.soon(self._give)

    def _give(self) -> None:
        """In the tick: plain text by the short way, everything else by waking the task."""
        self._due = False
        waiter = self._waiter
        if waiter is None or waiter.done():
            return  # it closed meanwhile
        try:
            shown = self._shown()
        except Exception:  # a bug in how it is shown: its own task meets it too, and tells its client
            shown = False
        if not shown:
            waiter.set_result(None)

    def _shown(self) -> bool:
        """Whether what is new was shown, or nothing is."""
        live, show = self._live, self._show
        if live.end is not None or live.lost is not None or self._lost is not None or show is None:
            return False
        text = live.text_since(self._position)
        if text is not None:
            if text.logprobs is not None or not show(text):
                return False
            self._went(text.end_token)
        return True

    def _went(self, end_token: int) -> None:
        live = self._live
        _UPDATES.value += 1
        _TOKENS.value += end_token - self._position
        self._position = end_token
        if end_token > live.read_tokens:
            live.read_tokens = max(live.read_tokens, min(end_token, len(live.log.ids)))

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
            self._went(text.end_token)
            updates.append(text)
        if live.end is not None:
            self._ended = True
            live.read_tokens = max(live.read_tokens, live.end.total)
            updates.append(live.end)
        return updates
