"""Released text is a function of the ids: checked against decoding ids[:k] from scratch."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.text import Detokenizer, TextStream, complete
from tests.unit.gateway.tokenizers_built import SPECIAL, byte_fallback, byte_level, metaspace

BYTES = Detokenizer(byte_level())
VOCAB = byte_level().get_vocab_size(with_added_tokens=True)
RAW = {raw: id_ for id_ in range(len(SPECIAL), VOCAB) if len(raw := BYTES.token_bytes(id_)) == 1}

token_ids = st.lists(st.integers(0, VOCAB + 3), max_size=60)
spelled = st.text(max_size=20).map(lambda text: [RAW[bytes((b,))] for b in text.encode()])  # a token a byte
encoded = st.text(max_size=40).map(lambda text: byte_level().encode(text).ids)
completions = st.lists(st.one_of(token_ids, spelled, encoded), max_size=4).map(lambda parts: [*chain(*parts)])
stops = st.lists(st.text(alphabet="abSTOP\n: é你", min_size=1, max_size=5), max_size=3)


CONTINUATIONS = (
    b"\x80",
    b"\xa0",
    b"\x90",
    b"\x80\x80",
    b"\xa0\x80",
    b"\x90\x80",
    b"\x90\x80\x80",
    b"\x80\x80\x80",
)


def scratch(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


def without_open_character(detokenizer: Detokenizer, ids: list[int], full: str) -> str:
    """The full decoding less the U+FFFD of a character that more bytes could still complete."""
    special = {byte_level().token_to_id(token) for token in SPECIAL}
    raw = b"".join(detokenizer.token_bytes(id_) for id_ in ids if id_ not in special)
    for length in (1, 2, 3):
        end = raw[-length:]
        if len(end) == length and any(can_complete(end + more) for more in CONTINUATIONS):
            return full[:-1]
    return full


def can_complete(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def expected(full: str, stop: list[str]) -> str:
    """By the definition: the longest beginning that does not end in the beginning of a stop string. (A whole
    one at the end is text: it came too early to stop anything.)"""
    for cut in range(len(full)):
        if any(s.startswith(full[cut:]) and s != full[cut:] for s in stop):
            return full[:cut]
    return full


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(completions)
@example([RAW[b"\xed"], RAW[b"\xa1"], RAW[b"\x80"]])  # a surrogate
def test_released_is_the_longest_complete_decoding(ids: list[int]) -> None:
    stream, released = TextStream(BYTES), ""
    for k, id_ in enumerate(ids, start=1):
        released += stream.push(id_)
        assert released == without_open_character(BYTES, ids[:k], scratch(byte_level(), ids[:k]))
    assert released + stream.finish() == scratch(byte_level(), ids)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(completions, stops, st.one_of(st.just(0), st.integers(0, 30)))
@example(byte_level().encode("ST STOP").ids, ["STOP", "P", "T S"], 3)
def test_stop_strings_by_definition(ids: list[int], stop: list[str], min_tokens: int) -> None:
    stream, released = TextStream(BYTES, stop, min_tokens), ""
    early = 0  # characters of the first ``min_tokens`` tokens: a stop string that ends in them is text
    for k, id_ in enumerate(ids, start=1):
        released += stream.push(id_)
        decoded = without_open_character(BYTES, ids[:k], scratch(byte_level(), ids[:k]))
        early = len(decoded) if k <= min_tokens else early
        found = stops_in(decoded, stop, early)
        if found:
            assert stream.stopped
            assert released == decoded[: min(found)]
            assert stream.push(RAW[b"x"]) == stream.finish() == ""
            return
        assert not stream.stopped
        assert released == expected(decoded, stop)
    full = scratch(byte_level(), ids)
    found = stops_in(full, stop, len(full) if len(ids) <= min_tokens else early)
    assert released + stream.finish() == (full[: min(found)] if found else full)


def stops_in(text: str, stop: list[str], early: int) -> list[int]:
    """Where the stop strings stand that end behind the first ``early`` characters."""
    return [at for s in stop for at in range(len(text)) if text.startswith(s, at) and at + len(s) > early]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(completions, stops, st.one_of(st.just(0), st.integers(0, 30)))
def test_kept_tokens_and_tail_spell_the_text(ids: list[int], stop: list[str], min_tokens: int) -> None:
    done = complete(BYTES, ids, stop, min_tokens)
    assert done.total > min_tokens or not done.stopped
    assert BYTES.decode(ids[: done.exact]) + done.tail == done.text
    assert done.exact <= done.total <= len(ids)
    if not done.stopped:
        assert (done.exact, done.tail) == (len(ids), "")


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "total"),
    [
        (["Hello", " ST", "OP", " more"], "STOP", "Hello ", 3),
        (["Hello", " world", "!"], "o w", "Hell", 2),  # spans two tokens, begins inside the first
        (["aaa", "ab", "c"], "aab", "aa", 2),  # the beginning overlaps itself
        (["S", "T", "x", "STOP"], "STOP", "STx", 4),  # a false start is released
        (["no", "ne"], "STOP", "none", 2),
    ],
)
def test_stop_cases(pieces: list[str], stop: str, text: str, total: int) -> None:
    ids = [id_ for piece in pieces for id_ in byte_level().encode(piece).ids]
    ends = []  # tokens up to the end of each piece
    for piece in pieces:
        ends.append(len(byte_level().encode(piece).ids) + (ends[-1] if ends else 0))
    done = complete(BYTES, ids, [stop])
    assert done.text == text
    assert done.total <= ends[total - 1]
    assert done.total > (ends[total - 2] if total > 1 else 0)


@pytest.mark.parametrize(
    ("min_tokens", "text"),
    [
        (0, "a"),
        (4, "a"),  # the fifth token completes the first one
        (5, "aSTOPb"),  # it came too early, and the second counts
        (9, "aSTOPb"),
        (10, "aSTOPbSTOP"),  # both too early
    ],
)
def test_no_stop_string_before_min_tokens(min_tokens: int, text: str) -> None:
    ids = [RAW[bytes((byte,))] for byte in b"aSTOPbSTOP"]
    done = complete(BYTES, ids, ["STOP"], min_tokens)
    assert done.text == text
    assert done.stopped == (min_tokens < 10)


def test_added_and_special_tokens() -> None:
    ids = byte_level().encode("a<tool_call><|im_end|>two words").ids
    assert BYTES.decode(ids) == "a<tool_call>two words"
    assert BYTES.token_bytes(byte_level().token_to_id("<|im_end|>")) == b"<|im_end|>"
    assert BYTES.token_bytes(10**6) == b""


def test_byte_fallback_equals_the_library_on_valid_text() -> None:
    tokenizer = byte_fallback()
    detokenizer = Detokenizer(tokenizer)
    of = tokenizer.token_to_id
    ids = [
        of("▁Hello"),
        of("<0xE4>"),
        of("<0xBD>"),
        of("<0xA0>"),
        of("</s>"),
        of("▁world"),
        of("▁▁"),
        of("é"),
    ]
    assert detokenizer.decode(ids) == scratch(tokenizer, ids) == "Hello你 world  é"
    stream = TextStream(detokenizer)
    assert [stream.push(id_) for id_ in ids] == ["Hello", "", "", "你", "", " world", "  ", "é"]
    # bytes that DecodeStream raises on: it takes back a character it has already given out
    assert detokenizer.decode([*ids[:4], of("<0xFF>"), of("a")]) == "Hello你\ufffda"


@given(st.lists(st.integers(0, 7), max_size=30))
def test_other_kinds_go_through_decode_stream(ids: list[int]) -> None:
    detokenizer = Detokenizer(metaspace())
    stream = TextStream(detokenizer)
    assert "".join([stream.push(id_) for id_ in ids]) + stream.finish() == scratch(metaspace(), ids)
