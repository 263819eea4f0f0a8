"""MessagePack to JSON for people. It knows no schema, so that it reads messages of any version."""

from __future__ import annotations

import json
import math
import sys
from base64 import b64encode
from collections.abc import Iterator

import msgpack

Jsonable = object


class NotMessagePack(ValueError):
    """``offset``: the byte at which the message that cannot be read begins."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"not MessagePack: {reason}")
        self.offset = offset


def decode_stdin() -> int:
    """Returns the exit code: 1 when something was not MessagePack, with the reason as the last line."""
    data = sys.stdin.buffer.read()
    out = sys.stdout.buffer
    try:
        for line in decode_lines(data):
            out.write(line.encode() + b"\n")
    except NotMessagePack as error:
        report = {"error": str(error), "offset": error.offset, "bytes": len(data)}
        out.write(json.dumps(report).encode() + b"\n")
        return 1
    finally:
        out.flush()
    return 0


def decode_lines(data: bytes) -> Iterator[str]:
    """One line of JSON for each message in ``data``. Raises ``NotMessagePack`` where that ends."""
    # raw: text and bytes come out alike, and text that is not UTF-8 does not end the decoding
    unpacker = msgpack.Unpacker(
        raw=True,
        strict_map_key=False,
        object_pairs_hook=_object,
        ext_hook=_extension,
        max_buffer_size=max(len(data), 1),
    )
    unpacker.feed(data)
    offset = 0
    while offset < len(data):
        try:
            line = json.dumps(_jsonable(unpacker.unpack()), ensure_ascii=False)
        except msgpack.OutOfData:
            raise NotMessagePack("it ends too early", offset) from None
        except (ValueError, RecursionError) as error:  # msgpack's own errors are ValueErrors
            reason = str(error) or type(error).__name__
            if "exceeds max_" in reason:  # more items than the bytes that are there can hold
                reason = "it ends too early"
            raise NotMessagePack(reason, offset) from error
        yield line
        offset = unpacker.tell()


def _object(pairs: list[tuple[object, object]]) -> dict[str, Jsonable]:
    """JSON has only text for keys: others are written as their own JSON."""
    return {_key(key): value for key, value in pairs}


def _key(key: object) -> str:
    value = _jsonable(key)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _extension(code: int, data: bytes) -> dict[str, Jsonable]:
    return {"extension": code, "base64": b64encode(data).decode()}


def _jsonable(value: object) -> Jsonable:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return "base64:" + b64encode(value).decode()
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no words for these
    if isinstance(value, msgpack.Timestamp):
        return {"timestamp_unix_ns": value.to_unix_nano()}
    return value
