"""MessagePack shown as JSON, whatever the bytes."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.decode import NotMessagePack, decode_lines, decode_stdin
from schemas import codec
from schemas.ids import Fence
from schemas.reply import Tokens

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def decode(data: bytes) -> list[object]:
    return [json.loads(line) for line in decode_lines(data)]


@given(st.lists(JSON_VALUES, max_size=3))
def test_several_messages_are_one_line_each(values: list[object]) -> None:
    assert decode(b"".join(msgpack.packb(value) for value in values)) == values


def test_one_of_our_own_messages() -> None:
    (shown,) = decode(codec.encode(Tokens(fence=Fence(7), offset=3, ids=(1, 2))))
    assert isinstance(shown, dict)
    assert shown["type"] == "tokens"
    assert shown["ids"] == [1, 2]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"plain", "plain"),
        (b"\xff\xfe", "base64://4="),
        ({1: "a", None: "b", (1, 2): "c", b"\xff": "d", 1.5: "e"}, None),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (msgpack.ExtType(5, b"\x01"), {"extension": 5, "base64": "AQ=="}),
        (msgpack.Timestamp(1, 2), {"timestamp_unix_ns": 1_000_000_002}),
        ([{"ä": "漢"}], [{"ä": "漢"}]),
    ],
)
def test_what_json_has_no_word_for(value: object, shown: object) -> None:
    if shown is None:
        shown = {"1": "a", "null": "b", "[1, 2]": "c", "base64:/w==": "d", "1.5": "e"}
    assert decode(msgpack.packb(value)) == [shown]


def test_text_that_is_not_utf8() -> None:
    assert decode(b"\xa2\xff\xfe") == ["base64://4="]


@pytest.mark.parametrize(
    ("data", "good", "offset", "reason"),
    [
        (b"\x82\xa1a", 0, 0, "too early"),
        (b"\xdd\xff\xff\xff\xff", 0, 0, "too early"),
        (b"\xda\xff", 0, 0, "too early"),
        (b"\x01\xc1", 1, 1, "not MessagePack"),
        (b"\x91" * 3000 + b"\x01", 0, 0, "not MessagePack"),
    ],
)
def test_what_is_malformed(data: bytes, good: int, offset: int, reason: str) -> None:
    lines = decode_lines(data)
    for _ in range(good):
        next(lines)
    with pytest.raises(NotMessagePack, match=reason) as raised:
        next(lines)
    assert raised.value.offset == offset


@given(st.binary(max_size=60))
def test_no_bytes_do_anything_else(data: bytes) -> None:
    try:
        for line in decode_lines(data):
            json.loads(line, parse_constant=pytest.fail)
    except NotMessagePack:
        pass


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(data: bytes) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        output = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=output))
        return decode_stdin(), output.getvalue().decode().splitlines()

    assert run(b"\x81\xa5error\x01") == (0, ['{"error": 1}'])
    assert run(b"") == (0, [])
    status, lines = run(b"\x01\xc1")
    assert status == 1
    assert lines[0] == "1"
    assert json.loads(lines[1])["offset"] == 1
