"""nats-py's parser with a short way past its queue and task for subscriptions with many small messages.

A message that nats-py hands to a callback costs 6.4 us: a regular expression, two copies, four coroutines, a
queue and a task (tests/bench/NOTES.md has what is left of it). What is not taken goes to nats-py as it was,
whole operations at a time. Must not know what the messages are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nats.protocol.parser import Parser

Take = Callable[[str, str, bytes, bytes], None]  # subject, reply subject, headers, payload; must not raise


_MESSAGES = (b"MSG ", b"HMSG ")


class ShortcutParser(Parser):
    """``takers``: by subscription id. All messages of one are taken, so that they keep their order."""

    def __init__(self, client: Any) -> None:
        self.takers: dict[bytes, Take] = {}
        self._stats = client.stats  # nats-py counts what it handles itself
        super().__init__(client)

    def reset(self) -> None:
        """On a new connection."""
        super().reset()
        self._held: list[bytes] = []  # the beginning of an operation
        self._held_bytes = 0
        self._needed_bytes = 0  # until all of it is here; 0: not known yet

    async def parse(self, data: bytes = b"") -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes < self._needed_bytes:
            return  # a large one is put together once
        if len(self._held) > 1:
            data = b"".join(self._held)
        at = taken = taken_bytes = 0
        while at < len(data):
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._needed_bytes = 0
                break
            stop = line_end + 2
            take = None
            if data.startswith(_MESSAGES, at):
                words = data[at:line_end].split()
                start, stop = stop, stop + int(words[-1]) + 2
                if stop > len(data):
                    self._needed_bytes = stop - at
                    break
                take = self.takers.get(words[2])
            if take is None:
                await super().parse(data[at:stop])
            else:
                taken += 1
                taken_bytes += stop - 2 - start
                _give(take, words, data, start, stop - 2)
            at = stop
        else:
            self._needed_bytes = 0
        self._held = [data[at:]]
        self._held_bytes = len(data) - at
        if taken:
            self._stats["in_msgs"] += taken
            self._stats["in_bytes"] += taken_bytes


def _give(take: Take, words: list[bytes], data: bytes, start: int, stop: int) -> None:
    """``MSG subject id [reply] size``, ``HMSG subject id [reply] headers-size size``."""
    body, sizes = start, 1
    if words[0] == b"HMSG":
        body, sizes = start + int(words[-2]), 2
    reply = words[3].decode("utf-8", "replace") if len(words) > 3 + sizes else ""
    take(words[1].decode("utf-8", "replace"), reply, data[start:body], data[body:stop])
