"""Responses that ended a short while ago, kept to be read again.

Bounded in time, number and bytes; at any of the bounds the oldest are dropped. Must not know how a response
is made.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import NamedTuple

from gateway.live import Live
from schemas.ids import ResponseId

KEEP_S = 300.0
MAX_RESPONSES = 1000
MAX_DROPPED = 100_000
MAX_BYTES = 256 << 20  # in all, as ``Live.kept_bytes`` estimates it; most responses take a few KiB
FORGET_EVERY_S = 10.0


class _Kept(NamedTuple):
    live: Live
    since_s: float
    size_bytes: int


class EndedResponses:
    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._kept: OrderedDict[ResponseId, _Kept] = OrderedDict()  # the oldest first
        self._dropped: OrderedDict[ResponseId, float] = OrderedDict()  # since when; the oldest first
        self._max_bytes = max_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def run(self) -> None:
        """Forget what is too old, though nothing new may come. Never returns."""
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            self.forget(time.monotonic())

    def keep(self, live: Live, now_s: float) -> None:
        """What of it is still of use. One that is larger than all of the room is not kept."""
        if live.response_id in self._dropped:
            return
        kept = live.for_keeping()
        size_bytes = kept.kept_bytes
        self._kept[live.response_id] = _Kept(kept, now_s, size_bytes)
        self._bytes += size_bytes
        self.forget(now_s)

    def find(self, response: ResponseId) -> Live | None:
        kept = self._kept.get(response)
        return None if kept is None else kept.live

    def drop(self, response: ResponseId, now_s: float) -> None:
        """It does not exist any more: also not where it ends here only now."""
        if (kept := self._kept.pop(response, None)) is not None:
            self._bytes -= kept.size_bytes
        self._dropped[response] = now_s
        self.forget(now_s)

    def is_dropped(self, response: ResponseId) -> bool:
        return response in self._dropped

    def drop_all(self) -> None:
        """What is kept may not exist any more; what does can be read again from its log."""
        self._kept.clear()
        self._bytes = 0

    def forget(self, now_s: float) -> None:
        while self._kept and self._is_one_too_many(now_s):
            self._bytes -= self._kept.popitem(last=False)[1].size_bytes
        while self._dropped and (
            len(self._dropped) > MAX_DROPPED or next(iter(self._dropped.values())) < now_s - KEEP_S
        ):
            self._dropped.popitem(last=False)

    def _is_one_too_many(self, now_s: float) -> bool:
        oldest = next(iter(self._kept.values()))
        too_many = len(self._kept) > MAX_RESPONSES or self._bytes > self._max_bytes
        return too_many or oldest.since_s < now_s - KEEP_S
