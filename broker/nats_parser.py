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


class ShortcutParser(Parser):
    """``takers``: by subscription id. All messages of one are taken, so that they keep their order."""

    def __init__(self, client: Any) -> None:
        self.takers: dict[bytes, Take] = {}
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
        at = 0
        while at < len(data):
            words, start, stop = _operation(data, at)
            if not 0 < stop <= len(data):
                self._needed_bytes = max(0, stop - at)
                break
            take = self.takers.get(words[2]) if len(words) > 3 else None
            if take is None:
                await super().parse(data[at:stop])
            else:
                _give(take, words, data, start, stop - 2)
            at = stop
        else:
            self._needed_bytes = 0
        self._held = [data[at:]]
        self._held_bytes = len(data) - at


def _operation(data: bytes, at: int) -> tuple[list[bytes], int, int]:
    """Of the operation at ``at``: the words of its line where it is a message, where its payload starts, and
    where the next operation does; 0 where that is not known yet."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return [], 0, 0
    start = line_end + 2
    if not data.startswith((b"MSG ", b"HMSG "), at):
        return [], start, start
    words = data[at:line_end].split()
    return words, start, start + int(words[-1]) + 2


def _give(take: Take, words: list[bytes], data: bytes, start: int, stop: int) -> None:
    body, counts = start, 1
    if words[0] == b"HMSG":
        body, counts = start + int(words[-2]), 2
    reply = words[3] if len(words) == 4 + counts else b""
    take(_text(words[1]), _text(reply), data[start:body], data[body:stop])


def _text(word: bytes) -> str:
    return word.decode(errors="replace")
