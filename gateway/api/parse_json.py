"""Client JSON to typed structs, and every way that can fail to a coded error with the field's path.

Knows nothing of what the fields mean: each surface brings its own struct and its own list of fields
that exist elsewhere but are not served here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from schemas.errors import HeadraceError

Request = TypeVar("Request", bound=msgspec.Struct)
JsonObject = dict[str, Any]  # only between the decoder and ``to_request``; nothing else keeps one

_AT = re.compile(r" - at `(?:key` in `)?\$?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`$")
_MAX_ECHO = 80  # characters of a client's own text repeated in an error message


def decode_object(data: bytes | str) -> JsonObject:
    """JSON text to an object. Raises ``invalid_encoding``, ``invalid_json``, ``invalid_request``.

    JSON that nests deeper than the decoder follows, lone surrogates (``"\\ud800"``), and numbers beyond
    a double are refused as malformed; of duplicate keys the last one counts (RFC 8259 leaves it open).
    """
    if isinstance(data, bytes):
        try:
            data = data.decode()
        except UnicodeDecodeError as error:
            raise HeadraceError(
                "invalid_encoding", f"Send JSON as UTF-8: byte {error.start} is not part of any character."
            ) from None
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise HeadraceError("invalid_json", "The JSON is nested too deeply.") from None
    except msgspec.DecodeError as error:
        raise HeadraceError("invalid_json", f"This is not JSON: {_reason(str(error))}.") from None
    if not isinstance(value, dict):
        raise HeadraceError("invalid_request", "Send a JSON object: {…}.")
    return value


def to_request(
    raw: JsonObject, into: type[Request], *, unsupported: Mapping[str, str] | None = None
) -> Request:
    """An object to a surface's struct. Raises ``unknown_parameter`` (with the closest field),
    ``unsupported_parameter`` (``unsupported``: field to what to do instead; null counts as absent),
    ``invalid_request`` for a missing field, ``invalid_value`` or ``invalid_token_id`` for the rest."""
    known = _names(into)
    unsupported = unsupported or {}
    given: JsonObject = {}
    for name, value in raw.items():
        if name in known:
            given[name] = value
        elif name not in unsupported:
            raise unknown_parameter(name, known)
        elif value is not None:
            problem = f"{name!r} is not supported: {unsupported[name]}."
            raise HeadraceError("unsupported_parameter", problem, param=name)
    try:
        return msgspec.convert(given, into)
    except RecursionError:
        raise HeadraceError("invalid_json", "The JSON is nested too deeply.") from None
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from None


@lru_cache(maxsize=64)
def _names(struct: type[msgspec.Struct]) -> frozenset[str]:
    """Of its fields. Kept, because msgspec evaluates all annotations anew: a millisecond for a request."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(struct))


def too_large(max_bytes: int) -> HeadraceError:
    return HeadraceError("payload_too_large", f"Send at most {max_bytes} bytes at once.")


def unknown_parameter(name: str, known: Iterable[str], *, inside: str = "") -> HeadraceError:
    shown = name[:_MAX_ECHO]
    close = difflib.get_close_matches(shown, list(known), n=1, cutoff=0.6)
    hint = f" Did you mean {close[0]!r}?" if close else " Leave it out."
    path = f"{inside}.{shown}" if inside else shown
    problem = f"There is no parameter {shown!r}{_where(inside)}.{hint}"
    return HeadraceError("unknown_parameter", problem, param=path)


def _refused(text: str) -> HeadraceError:
    """msgspec's message and path, such as ``Expected `int`, got `str` - at `$.input[0].role```."""
    at = _AT.search(text)
    path = at["path"].lstrip(".").replace("[...]", "") if at else ""
    problem = text[: at.start()] if at else text
    if unknown := _UNKNOWN.fullmatch(problem):
        return unknown_parameter(unknown["name"], _NESTED_FIELDS, inside=path)
    if missing := _MISSING.fullmatch(problem):
        name = missing["name"]
        return HeadraceError(
            "invalid_request", f"{name!r} is missing{_where(path)}.", param=f"{path}.{name}" if path else name
        )
    code = (
        "invalid_token_id" if path.startswith(("stop_token_ids[", "allowed_token_ids[")) else "invalid_value"
    )
    shown = f"{path}: " if path else ""
    return HeadraceError(code, f"{shown}{_reason(problem)}.", param=path or None)


# Names a nested object may carry, for suggestions only.
_NESTED_FIELDS = ("type", "role", "content", "text", "id", "status", "format", "include_usage", "annotations")


def _where(path: str) -> str:
    return f" in {path!r}" if path else ""


def _reason(text: str) -> str:
    return text.replace("`", "").replace(" | null", "")[:300]
