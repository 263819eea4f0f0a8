"""Token ids to text, one token at a time: a pure function of the ids, however they arrive.

After k tokens the released text is the longest complete UTF-8 decoding of ids[:k] that does not end in
the beginning of a stop string. Special tokens make no text. Must not know logs or clients.

Byte-level tokenizers (and the byte-fallback kind) are decoded from a table of each token's bytes: 0.35 us
a token where ``tokenizers.DecodeStream`` takes 3.1 (measured together), whatever the ids. That is left for
the other kinds: it decodes all it holds back at each step, so a model made to emit invalid bytes costs
quadratic time (13 s for 4,000 tokens against 12 ms), and on byte-fallback tokenizers it raises for some.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_Utf8 = codecs.getincrementaldecoder("utf-8")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Decoding(Protocol):
    """Decoding of one completion. ``is_open``: the last token has not shown all its text yet."""

    @property
    def is_open(self) -> bool: ...

    def step(self, token_id: int) -> str:
        """The characters that this token completes."""
        ...

    def finish(self) -> str:
        """What is left, an incomplete character as U+FFFD."""
        ...


class Detokenizer:
    """Of one model, shared by its responses. Building it for 128,000 tokens takes about 0.2 s: do it in
    a thread."""

    def __init__(self, tokenizer: Tokenizer, is_shown: Callable[[str], bool] | None = None) -> None:
        """``is_shown``: special tokens that make text all the same, as it is written."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        special = {id_: token.content for id_, token in added.items() if token.special}
        shown = {id_: text for id_, text in special.items() if is_shown is not None and is_shown(text)}
        self.shows_special = bool(shown)
        self._special = frozenset(special.keys() - shown.keys())
        rule = _byte_rule(json.loads(tokenizer.to_str())["decoder"])
        self._strip_left = rule is not None and rule.strip_left
        self._table: list[str | bytes] | None = None  # bytes where they are not whole characters
        if rule is not None:
            vocabulary = {id_: text for text, id_ in tokenizer.get_vocab(with_added_tokens=True).items()}
            vocabulary |= {id_: token.content for id_, token in added.items()}
            self._table = [""] * (max(vocabulary, default=-1) + 1)
            for id_, text in vocabulary.items():
                if id_ not in self._special:
                    self._table[id_] = shown[id_] if id_ in shown else _characters(rule.token_bytes(text))

    def start(self) -> Decoding:
        if self._table is not None:
            return _ByteDecoding(self._table, self._strip_left)
        return _StreamDecoding(self._tokenizer, self._special)

    def decode(self, ids: Iterable[int]) -> str:
        decoding = self.start()
        return "".join([decoding.step(id_) for id_ in ids]) + decoding.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """One token's own bytes, of special ones too; empty for an id outside the vocabulary."""
        if token_id in self._special or self._table is None:
            return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()
        piece = self._table[token_id] if 0 <= token_id < len(self._table) else b""
        return piece.encode() if isinstance(piece, str) else piece


def _characters(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class TextStream:
    """Text of one completion. ``stopped``: a stop string was found; the token pushed last completed it,
    the text ends before it, and nothing comes after. A stop string that the first ``min_tokens`` tokens
    complete is text like any other (as in vLLM, v1/engine/detokenizer.py)."""

    __slots__ = ("_barred", "_begins", "_decoding", "_held", "_min_tokens", "_pushed", "_stop", "stopped")

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._decoding = detokenizer.start()
        self._stop = tuple(s for s in stop if s)
        self._begins = re.compile("|".join(sorted({re.escape(s[0]) for s in self._stop}))).search
        self._held = ""  # ends in, or is, the beginning of a stop string
        self._min_tokens = min_tokens
        self._pushed = 0  # counted only where there are stop strings
        self._barred = 0  # so many characters of ``_held`` come from the first ``min_tokens`` tokens
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that this token releases."""
        if self.stopped:
            return ""
        new = self._decoding.step(token_id)
        if not self._stop:
            return new
        self._pushed += 1
        if not self._held and self._begins(new) is None:
            return new  # what nearly all tokens come to
        return self._match(new) if new else ""

    def finish(self) -> str:
        """The text that only the end releases; may find a stop string, too."""
        if self.stopped:
            return ""
        text = self._match(self._decoding.finish()) + self._held
        self._held = ""
        return text

    def _match(self, new: str) -> str:
        # A stop string cannot begin in released text: its beginning would have been held back.
        text = self._held + new
        barred = len(text) if self._pushed <= self._min_tokens else self._barred  # a match ends behind it
        starts = [text.find(s, max(0, barred - len(s) + 1)) for s in self._stop]
        found = min((at for at in starts if at >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            self._held = ""
            return text[:found]
        keep = min((_beginning(text, s) for s in self._stop), default=len(text))
        self._held = text[keep:]
        self._barred = max(0, barred - keep)
        return text[:keep]


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole completion read again. ``total``: tokens that count. ``exact``: how many of them make text
    that is shown in full; ``tail`` is the shown text after those (a stop string cut a token in two)."""

    text: str
    total: int
    stopped: bool
    exact: int
    tail: str


def complete(
    detokenizer: Detokenizer, ids: Sequence[int], stop: Sequence[str], min_tokens: int = 0
) -> Completion:
    """Read a finished completion from token 0."""
    stream = TextStream(detokenizer, stop, min_tokens)
    pieces: list[str] = []
    total = 0
    for token_id in ids:
        pieces.append(stream.push(token_id))
        total += 1
        if stream.stopped:
            break
    pieces.append(stream.finish())
    text = "".join(pieces)
    if not stream.stopped:
        return Completion(text, total, False, total, "")
    decoding = detokenizer.start()
    exact = shown = length = 0
    for count, token_id in enumerate(ids[:total], start=1):
        length += len(decoding.step(token_id))
        if length > len(text):
            break
        if not decoding.is_open:
            exact, shown = count, length
    return Completion(text, total, True, exact, text[shown:])


def _beginning(text: str, stop: str) -> int:
    """Where the longest end of ``text`` that is a beginning of ``stop`` stands; its length if none is."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)


class _ByteDecoding:
    """A token that is whole characters is its own text, unless a character is begun before it."""

    __slots__ = ("_decoder", "_slow", "_strip", "_table", "is_open")

    def __init__(self, table: list[str | bytes], strip_left: bool) -> None:
        self._table = table
        self._decoder = _Utf8("replace")
        self._strip = strip_left
        self.is_open = False
        self._slow = strip_left

    def step(self, token_id: int) -> str:
        # a model's output layer may be wider than its vocabulary
        piece = self._table[token_id] if 0 <= token_id < len(self._table) else ""
        if not self._slow and isinstance(piece, str):
            return piece
        text = self._decoder.decode(piece.encode() if isinstance(piece, str) else piece)
        held = self._decoder.getstate()[0]
        if held >= b"\xed\xa0" and held[0] == 0xED:  # a surrogate: Python waits for its end, which is none
            text += self._decoder.decode(b"", final=True)
            held = b""
        self.is_open = bool(held)
        return self._stripped(text)

    def finish(self) -> str:
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        self._slow = self._strip or self.is_open
        return text


class _StreamDecoding:
    __slots__ = ("_failed", "_ids", "_length", "_special", "_stream", "_tokenizer", "is_open")

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._stream = DecodeStream(skip_special_tokens=False)  # those to be skipped do not come here
        self._ids: list[int] = []
        self._length = 0
        self._failed = False
        self.is_open = False

    def step(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        self.is_open = True
        self._ids.append(token_id)
        if self._failed:
            return ""
        try:
            text = self._stream.step(self._tokenizer, token_id) or ""
        except Exception:  # its errors have no type of their own; the rest comes with ``finish``
            self._failed = True
            return ""
        self._length += len(text)
        self.is_open = not text
        return text

    def finish(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=False)[self._length :]


@dataclass(frozen=True, slots=True)
class _ByteRule:
    """How a token's written form becomes bytes. ``byte_level``: GPT-2's alphabet of printable characters;
    otherwise SentencePiece's, with U+2581 for a space and ``<0x..>`` for single bytes."""

    byte_level: bool
    strip_left: bool = False  # one space at the very beginning

    def token_bytes(self, text: str) -> bytes:
        if not self.byte_level:
            match = _BYTE_TOKEN.fullmatch(text)
            return bytes((int(match[1], 16),)) if match else text.replace("▁", " ").encode()
        try:
            return bytes([_BYTE_OF[char] for char in text])
        except KeyError:  # an added token, written as it is
            return text.encode()


def _byte_rule(decoder: object) -> _ByteRule | None:
    match decoder:
        case {"type": "ByteLevel"} | {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}:
            return _ByteRule(byte_level=True)
        case {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *rest,
            ],
        }:
            match rest:
                case []:
                    return _ByteRule(byte_level=False)
                case [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
                    return _ByteRule(byte_level=False, strip_left=True)
    return None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's ``bytes_to_unicode``, backwards (openai/gpt-2, src/encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
