"""A stream and its reader: what arrived waits here until the reader takes it. Must not know connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from gateway.client.errors import JsonObject, ResponseError
from gateway.client.mailbox import Mailbox
from gateway.client.stream import StreamState


class Follower:
    def __init__(self, state: StreamState) -> None:
        self.state = state
        self._mailbox = Mailbox()
        self._news = asyncio.Event()
        self._over = asyncio.Event()

    def take(self, lane: str, event: JsonObject) -> None:
        fresh = self.state.take(lane, event)
        if fresh is not None:
            self._mailbox.put(fresh)
            self._news.set()
        self._look()

    def refused(self, lane: str, error: ResponseError, now: float) -> None:
        self.state.refused(lane, error, now)
        self._look()

    def give_up(self, trouble: ResponseError) -> None:
        self.state.give_up(trouble)
        self._look()

    def fail(self, error: Exception) -> None:
        self.state.fail(error)
        self._look()

    def leave(self) -> None:
        """Its reader takes no more."""
        self.state.leave()
        self._look()

    def _look(self) -> None:
        if self.state.over:
            self._news.set()
            self._over.set()

    async def events(self) -> AsyncGenerator[JsonObject, None]:
        """Until the end; raises what ended it, if that was no terminal event. For one reader."""
        while True:
            while (event := self._mailbox.pop()) is not None:
                yield event
            if self.state.over:
                if self.state.error is not None:
                    raise self.state.error.with_traceback(None)  # of a connection, it is shared by many
                return
            self._news.clear()
            await self._news.wait()

    async def end(self) -> JsonObject | None:
        """The terminal event, however much the reader has yet to take; None if the reader left before it.
        Raises what ended it otherwise."""
        await self._over.wait()
        if self.state.error is not None:
            raise self.state.error.with_traceback(None)
        return self.state.terminal
