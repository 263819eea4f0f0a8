"""By which names others know a request: the trace that it belongs to, and the id that its client gave it."""

from __future__ import annotations

import re

from starlette.requests import HTTPConnection

from schemas.errors import HeadraceError

MAX_REQUEST_ID = 512  # as at OpenAI
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
_REQUEST_ID = re.compile(rf"[!-~]{{1,{MAX_REQUEST_ID}}}")  # what may stand in a log line and a header


def traceparent(connection: HTTPConnection) -> str | None:
    """W3C trace context; one that is malformed is dropped, as its specification demands."""
    value = connection.headers.get("traceparent", "")
    return value if _TRACEPARENT.fullmatch(value) else None


def request_id(connection: HTTPConnection) -> str:
    """``X-Client-Request-Id``, else ``X-Request-Id``, which a proxy may have set and which is dropped where
    it is malformed. Empty where there is none. Raises ``invalid_value``."""
    own = connection.headers.get("x-client-request-id")
    if own is None:
        value = connection.headers.get("x-request-id", "")
        return value if _REQUEST_ID.fullmatch(value) else ""
    if not _REQUEST_ID.fullmatch(own):
        problem = f"X-Client-Request-Id: give 1 to {MAX_REQUEST_ID} characters of ASCII without spaces."
        raise HeadraceError("invalid_value", problem, param="x-client-request-id")
    return own
