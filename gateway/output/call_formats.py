"""How models write tool calls: one reader for each way. Each gives pieces, or says that it was no call.

A call is opened when its name is known and is one of the request's tools; what is no such call stays text.
From then on its arguments stream as they come, and what is wrong with them is the client's to see.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping

import msgspec

from gateway.output.pieces import Arguments, CallClosed, CallOpened, Piece
from gateway.output.reading import SPACE, Nesting, Reading, Wait

_NAME_KEYS = ("name",)
_ARGUMENT_KEYS = ("arguments", "parameters")
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class CallReader:
    """``tools``: the parameters of each that are strings, by its name."""

    def __init__(
        self, reading: Reading, emit: Callable[[Piece], None], tools: Mapping[str, frozenset[str]]
    ) -> None:
        self._reading = reading
        self._emit = emit
        self._tools = tools

    # -- JSON: {"name": …, "arguments": {…}} ----------------------------------------------------------

    def json_call(self) -> Wait[bool]:
        """An object with a name and arguments, in either order. False: it is no call; the reading stands
        anywhere."""
        reading = self._reading
        if not (yield from reading.take("{")):
            return False
        name: str | None = None
        early: str | None = None  # arguments that stand before the name
        opened = False
        while (char := (yield from reading.spaces())) != "}":
            if char == ",":
                reading.at += 1
                continue
            key = _string((yield from reading.json_value())) if char == '"' else None
            yield from reading.spaces()
            if key is None or not (yield from reading.take(":")):
                return opened and self._close()
            yield from reading.spaces()
            if key in _ARGUMENT_KEYS and name is not None and not opened:
                opened = yield from self._arguments(name)
                if not opened:
                    return False
                continue
            value = yield from reading.json_value()
            if value is None:
                return opened and self._close()
            if key in _NAME_KEYS and name is None:
                name = _string(value)
                if name not in self._tools:
                    return False
            elif key in _ARGUMENT_KEYS and not opened:
                early = value
        if not char:
            return opened and self._close()
        reading.at += 1
        if opened:
            return self._close()
        return name is not None and self._whole(name, early)

    def _arguments(self, name: str) -> Wait[bool]:
        """Those of an object, as they come; JSON text in a string, when it is whole."""
        reading = self._reading
        if (yield from reading.peek()) == "{":
            self._emit(CallOpened(name))
            yield from self.object_as_it_comes()
            return True
        value = yield from reading.json_value()
        arguments = _object_text(value)
        if arguments is None:
            return False
        self._emit(CallOpened(name))
        self._emit(Arguments(arguments))
        return True

    def object_as_it_comes(self) -> Wait[bool]:
        """False: the text ended in it."""
        reading, scan = self._reading, Nesting()
        while not scan.over:
            if not (yield from reading.peek()):
                return False
            start = reading.at
            reading.at = scan.advance(reading.text, start)
            self._emit(Arguments(reading.text[start : reading.at]))
            reading.forget()
        return True

    def _whole(self, name: str, value: str | None) -> bool:
        arguments = "{}" if value is None else _object_text(value)
        if arguments is None:
            return False
        self._emit(CallOpened(name))
        self._emit(Arguments(arguments))
        return self._close()

    def _close(self) -> bool:
        self._emit(CallClosed())
        return True

    def json_list(self) -> Wait[bool]:
        """``[call, call, …]``. False: the first is no call."""
        reading = self._reading
        reading.at += 1
        yield from reading.spaces()
        if not (yield from self.json_call()):
            return False
        while True:
            reading.forget()
            char = yield from reading.spaces()
            if char == "]":
                reading.at += 1
                return True
            start = reading.at
            if char == ",":
                reading.at += 1
                yield from reading.spaces()
            if char != "," or not (yield from self.json_call()):
                reading.at = start  # the rest is text
                return True

    def json_calls(self) -> Wait[bool]:
        """Llama's: one object behind the other, perhaps with a separator. False: the first is no call."""
        reading = self._reading
        if not (yield from self.json_call()):
            return False
        while True:
            reading.forget()
            char = yield from reading.spaces()
            if char in (";", ","):
                reading.at += 1
                char = yield from reading.spaces()
            if char != "{" or not (yield from self.json_call()):
                reading.at = 0
                return True

    # -- Mistral: [TOOL_CALLS][…], [TOOL_CALLS]name[ARGS]{…} -----------------------------------------

    def mistral_call(self) -> Wait[bool]:
        reading = self._reading
        if (yield from reading.spaces()) == "[":
            return (yield from self.json_list())
        name = yield from self._name()
        if name not in self._tools:
            return False
        if (yield from reading.take("[CALL_ID]")):
            yield from self._name()
        yield from reading.take("[ARGS]")
        if (yield from reading.spaces()) != "{":
            return False
        self._emit(CallOpened(name))
        yield from self.object_as_it_comes()
        return self._close()

    def _name(self) -> Wait[str]:
        reading = self._reading
        start = reading.at
        while (char := (yield from reading.peek())) and char in _NAME_CHARACTERS:
            reading.at += 1
        return reading.text[start : reading.at]

    # -- Qwen3-Coder: <function=name><parameter=key>value</parameter></function> ---------------------

    def tagged_call(self) -> Wait[bool]:
        reading = self._reading
        name = yield from self._tag("<function=")
        if name not in self._tools:
            return False
        assert name is not None
        self._emit(CallOpened(name))
        before = "{"
        while (yield from reading.spaces()) == "<":
            key = yield from self._tag("<parameter=")
            if key is None:
                break
            value = yield from reading.until("</parameter>")
            self._emit(Arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: "))
            if value is None:  # cut short: half a JSON text, too
                self._emit(Arguments(json.dumps(reading.text[reading.at :].lstrip("\n"))[:-1]))
                reading.at = len(reading.text)
                return True
            value = value.removeprefix("\n").removesuffix("\n")
            self._emit(Arguments(self._typed(name, key, value)))
            before = ", "
        if not (yield from reading.peek()):
            return True
        self._emit(Arguments("{}" if before == "{" else "}"))
        yield from reading.take("</function>")
        return self._close()

    def _tag(self, begin: str) -> Wait[str | None]:
        reading = self._reading
        if not (yield from reading.take(begin)):
            return None
        name = yield from self._name()
        return name if (yield from reading.take(">")) else None

    def _typed(self, tool: str, key: str, value: str) -> str:
        """The tags say no types: the tool's schema does."""
        if key not in self._tools[tool] and _is_json(value.strip()):
            return value.strip()
        return json.dumps(value, ensure_ascii=False)

    # -- pythonic: [f(a=1), g(b="x")] ----------------------------------------------------------------

    def pythonic_calls(self) -> Wait[bool]:
        reading = self._reading
        reading.at += 1
        first = True
        while True:
            yield from reading.spaces()
            start = reading.at
            name = yield from self._name()
            if name not in self._tools or not (yield from reading.take("(")):
                reading.at = start
                return not first
            first = False
            self._emit(CallOpened(name))
            yield from self._keywords()
            self._emit(CallClosed())
            reading.forget()
            char = yield from reading.spaces()
            if char in (",", "]"):
                reading.at += 1
            if char != ",":
                return True

    def _keywords(self) -> Wait[None]:
        """Up to and with the closing parenthesis."""
        reading = self._reading
        before = "{"
        while (char := (yield from reading.spaces())) and char != ")":
            key = (yield from self._until_any("=,)")).strip()
            if (yield from reading.peek()) == "=":
                reading.at += 1
                value = yield from self._until_any(",)")
            else:
                key, value = "", key  # no keyword: nothing is lost
            if not (yield from reading.peek()):  # cut short: half a JSON text, too
                self._emit(Arguments(f"{before}{json.dumps(key)}: {json.dumps(value.strip())[:-1]}"))
                return
            self._emit(Arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: {_literal(value.strip())}"))
            before = ", "
            if (yield from reading.peek()) == ",":
                reading.at += 1
        if char:
            self._emit(Arguments("{}" if before == "{" else "}"))
            reading.at += 1

    def _until_any(self, ends: str) -> Wait[str]:
        """Up to one of ``ends`` outside brackets and Python's strings, or the end."""
        reading = self._reading
        start, depth, quote = reading.at, 0, ""
        while char := (yield from reading.peek()):
            if quote:
                if char == "\\":
                    reading.at += 1
                    yield from reading.peek()
                elif char == quote:
                    quote = ""
            elif char in "\"'":
                quote = char
            elif depth == 0 and char in ends:
                break
            elif char in "([{":
                depth += 1
            elif char in ")]}":
                depth -= 1
            reading.at += 1
        return reading.text[start : reading.at]


def _string(value: str | None) -> str | None:
    try:
        return None if value is None else msgspec.json.decode(value, type=str)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def _object_text(value: str | None) -> str | None:
    """Of arguments that are an object, an object's text in a string, or null."""
    if value is not None and value.startswith('"'):
        value = _string(value)
    if value == "null":
        return "{}"
    return value if value is not None and value.lstrip(SPACE).startswith("{") else None


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True


def _literal(text: str) -> str:
    """A Python literal as JSON; what is none is told as a string."""
    if _is_json(text):
        return text
    try:
        return json.dumps(ast.literal_eval(text), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
