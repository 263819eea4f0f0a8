"""The text of one completion, token by token, to its pieces. Sans-IO: a pure function of the text.

However the text is cut, the pieces put together are the same, and nothing is lost but white space around
reasoning and calls, and their markers. What looks like a call and is none is text.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.output.call_formats import CallReader
from gateway.output.pieces import Arguments, CallClosed, CallOpened, Item, Piece, Reasoning, Words, gather
from gateway.output.reading import SPACE, Reading, Wait
from schemas.job import OutputShape

_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_ENDS = {"<tool_call>": "</tool_call>", "<|python_start|>": "<|python_end|>"}
_MARKERS = {
    "hermes": ("<tool_call>",),
    "llama": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]",),
    "pythonic": ("<|python_start|>",),
}
# Tokens that a tokenizer may call special, which the formats cannot be read without.
SHOWN_TOKENS = frozenset(
    {"<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "<|python_tag|>",
     "<|python_start|>", "<|python_end|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"}
)  # fmt: skip


class OutputParser:
    """``reasoning_tokens``: pushes that came while the model was thinking. ``dropped``: further calls were
    made where only one was asked for; they are shown nowhere."""

    def __init__(self, shape: OutputShape) -> None:
        self._shape = shape
        self._reading = Reading()
        self._out: list[Piece] = []
        self._muted = False
        self._fresh = True  # not behind reasoning or a call: white space is the message's
        self._calls = 0
        self._thinking = shape.thinking == "begun"
        tools = {name: frozenset(strings) for name, strings in shape.tools}
        self._reader = CallReader(self._reading, self._emit, tools)
        self._markers = _MARKERS.get(shape.tool_format, ())
        self._running = self._run()
        self._over = False
        self.reasoning_tokens = 0
        self.dropped = False

    def push(self, text: str) -> tuple[Piece, ...]:
        """The pieces that one token's text brings."""
        self.reasoning_tokens += self._thinking
        if not text or self._over:
            return ()
        self._reading.add(text)
        return self._advance()

    def finish(self) -> tuple[Piece, ...]:
        """What was held back. A call that the end cut short is not closed."""
        if self._over:
            return ()
        self._reading.ended = True
        pieces = self._advance()
        self._over = True
        return pieces

    def _advance(self) -> tuple[Piece, ...]:
        self._out = []
        try:
            next(self._running)
        except StopIteration:
            self._over = True
        return _merged(self._out)

    def _emit(self, piece: Piece) -> None:
        if isinstance(piece, CallOpened):
            self._muted = self._shape.one_call and self._calls > 0
            self.dropped = self.dropped or self._muted
            self._calls += 1
        cut = isinstance(piece, CallClosed) and self._reading.ended
        if not (self._muted or cut):
            self._out.append(piece)
        if isinstance(piece, CallClosed):
            self._muted = False

    def _run(self) -> Wait[None]:
        if self._shape.thinking:
            yield from self._think()
        match self._shape.tool_format:
            case "arguments":
                yield from self._only_arguments()
            case "list":
                yield from self._at_start("[", self._reader.json_list)
            case "llama":
                yield from self._at_start("{", self._reader.json_calls)
            case "pythonic":
                yield from self._at_start("[", self._reader.pythonic_calls)
        while (marker := (yield from self._text())) is not None:
            yield from self._marked(marker)

    def _think(self) -> Wait[None]:
        reading = self._reading
        begin, end = _TAGS[self._shape.thinking == "bracketed"]
        yield from reading.spaces()
        if (yield from reading.take(begin)):
            self._thinking = True
        elif not self._thinking:
            reading.at = 0  # it does not think this time; the white space is the message's
            return
        self._fresh = False
        yield from reading.spaces()
        while (found := reading.text.find(end, reading.at)) < 0:
            held = 0 if reading.ended else _begun(reading.text, reading.at, (end,))
            self._tell(Reasoning, len(reading.text) - held)
            if reading.ended:
                return
            yield
        self._tell(Reasoning, found)
        reading.at = len(end)
        self._thinking = False

    def _only_arguments(self) -> Wait[None]:
        """The whole text is the arguments of the one tool."""
        if (yield from self._reading.spaces()) == "{":
            self._emit(CallOpened(self._shape.tools[0][0]))
            yield from self._reader.object_as_it_comes()
            self._emit(CallClosed())
            self._fresh = False

    def _at_start(self, first: str, calls: Callable[[], Wait[bool]]) -> Wait[None]:
        """Formats without a marker: the calls are the beginning of the message."""
        reading = self._reading
        start = reading.at
        if (yield from reading.spaces()) == first and (yield from calls()):
            self._fresh = False
        else:
            reading.at = start

    def _text(self) -> Wait[str | None]:
        """The message up to a marker, which is returned with the reading on it, or on white space
        before it. White space that only leads from reasoning or a call to the next thing is dropped."""
        reading = self._reading
        if not self._fresh:
            yield from reading.spaces()
        blank = True  # so far
        while True:
            found, marker = self._next_marker()
            end = (
                found if marker or reading.ended else found - _begun(reading.text, reading.at, self._markers)
            )
            blank = blank and not reading.text[reading.at : end].strip(SPACE)
            if not blank or (reading.ended and not marker and self._fresh):
                self._tell(Words, end)
            if marker:
                reading.forget()
                return marker
            if reading.ended:
                return None
            yield

    def _next_marker(self) -> tuple[int, str]:
        text, at = self._reading.text, self._reading.at
        places = [(found, marker) for marker in self._markers if (found := text.find(marker, at)) >= 0]
        return min(places, default=(len(text), ""))

    def _marked(self, marker: str) -> Wait[None]:
        """A call, or else the marker is text, and what comes behind it is looked at anew."""
        reading = self._reading
        end = reading.text.index(marker) + len(marker)
        reading.at = end
        if (yield from self._call_behind(marker)):
            self._fresh = False
            reading.forget()
        else:
            reading.at = 0
            self._tell(Words, end)
            self._fresh = True

    def _call_behind(self, marker: str) -> Wait[bool]:
        reading, reader = self._reading, self._reader
        if marker == "[TOOL_CALLS]":
            return (yield from reader.mistral_call())
        char = yield from reading.spaces()
        if marker == "<|python_tag|>":
            return char == "{" and (yield from reader.json_calls())
        if marker == "<|python_start|>":
            called = char == "[" and (yield from reader.pythonic_calls())
        else:
            called = (yield from reader.json_call()) if char == "{" else (yield from reader.tagged_call())
        if called:
            yield from reading.spaces()
            yield from reading.take(_ENDS[marker])
        return called

    def _tell(self, kind: type[Reasoning] | type[Words], end: int) -> None:
        reading = self._reading
        if end > reading.at:
            self._emit(kind(reading.text[reading.at : end]))
            reading.at = end
        reading.forget()


def read_whole(shape: OutputShape, text: str) -> tuple[list[Item], bool]:
    """The items of a whole completion, and whether calls were dropped from it."""
    parser = OutputParser(shape)
    return gather((*parser.push(text), *parser.finish())), parser.dropped


def _begun(text: str, at: int, markers: tuple[str, ...]) -> int:
    """How many characters at the end may be the beginning of a marker."""
    longest = max(map(len, markers), default=1) - 1
    for start in range(max(at, len(text) - longest), len(text)):
        if any(marker.startswith(text[start:]) for marker in markers):
            return len(text) - start
    return 0


def _merged(pieces: list[Piece]) -> tuple[Piece, ...]:
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        match piece, last:
            case (Words(text), Words(before)):
                merged[-1] = Words(before + text)
            case (Reasoning(text), Reasoning(before)):
                merged[-1] = Reasoning(before + text)
            case (Arguments(text), Arguments(before)):
                merged[-1] = Arguments(before + text)
            case _:
                merged.append(piece)
    return tuple(merged)
