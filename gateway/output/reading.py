"""Text that comes in parts, read as if it were whole: what a parser needs that is cut anywhere.

A parser is a generator: it asks for characters, and where there is none yet, it waits (``yield``). So its
decisions depend on the text alone, never on how it was cut.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]  # ``yield``: more text is needed, or its end

SPACE = " \t\r\n"
_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')
_SCALAR_END = re.compile(r"[,}\]\s]")


class Reading:
    """``at``: the next character to read. Nothing is forgotten before ``forget``."""

    __slots__ = ("at", "ended", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False

    def add(self, text: str) -> None:
        self.text += text

    def forget(self) -> None:
        """What was read is not gone back to."""
        if self.at:
            self.text = self.text[self.at :]
            self.at = 0

    def peek(self) -> Wait[str]:
        """The next character, unread; empty at the end."""
        while self.at >= len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def spaces(self) -> Wait[str]:
        """Past white space; the character behind it."""
        while (char := (yield from self.peek())) and char in SPACE:
            self.at += 1
        return char

    def take(self, expected: str) -> Wait[bool]:
        """Past ``expected``, if that is what comes."""
        start = self.at
        for char in expected:
            if (yield from self.peek()) != char:
                self.at = start
                return False
            self.at += 1
        return True

    def until(self, end: str) -> Wait[str | None]:
        """The text before ``end``, and past it. None, and nothing read, where it never comes."""
        search = self.at
        while (found := self.text.find(end, search)) < 0:
            search = max(self.at, len(self.text) - len(end) + 1)
            if self.ended:
                return None
            yield
        text = self.text[self.at : found]
        self.at = found + len(end)
        return text

    def json_value(self) -> Wait[str | None]:
        """The text of the JSON value that stands here: its extent, not its validity. None at the end."""
        start = self.at
        char = yield from self.peek()
        if char in ("{", "[", '"'):
            scan = Nesting()
            while not scan.over:
                if not (yield from self.peek()):
                    return None
                self.at = scan.advance(self.text, self.at)
            return self.text[start : self.at]
        while True:
            end = _SCALAR_END.search(self.text, self.at)
            if end is not None:
                self.at = end.start()
                return self.text[start : self.at]
            self.at = len(self.text)
            if self.ended:
                return None
            yield


class Nesting:
    """Where a JSON value that begins with a quote or bracket ends. ``over``: it has."""

    __slots__ = ("_depth", "_in_string", "_skip", "over")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._skip = False  # the next character is behind a backslash
        self.over = False

    def advance(self, text: str, at: int) -> int:
        """Where it ends, or the end of the text."""
        while at < len(text):
            if self._skip:
                self._skip = False
                at += 1
                continue
            found = (_IN_STRING if self._in_string else _OUTSIDE).search(text, at)
            if found is None:
                return len(text)
            at = found.end()
            match found[0]:
                case "\\":
                    self._skip = True
                case '"':
                    self._in_string = not self._in_string
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
            if self._depth <= 0 and not self._in_string:
                self.over = True
                return at
        return at
