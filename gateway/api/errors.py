"""Errors as clients see them, over HTTP and over a WebSocket. One shape, whoever raised: us, the framework
or a bug. The codes and their statuses are ``schemas.errors``; nothing of a stack trace goes out."""

from __future__ import annotations

import logging
from typing import Any, Literal

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from broker.metrics import ERRORS as COUNT
from schemas.errors import ERRORS, HeadraceError

log = logging.getLogger(__name__)
_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error object. ``headers``: over a WebSocket, what HTTP says in headers."""

    type: str
    code: str
    message: str
    param: str | None
    headers: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class HttpError(msgspec.Struct, frozen=True):
    error: ErrorBody


class SocketError(msgspec.Struct, frozen=True, kw_only=True):
    """``event_id``, ``stream_id``: those of the client event it answers; ``response_id``: if there is one."""

    type: Literal["error"] = "error"
    status: int
    error: ErrorBody
    event_id: str | msgspec.UnsetType = msgspec.UNSET
    stream_id: str | msgspec.UnsetType = msgspec.UNSET
    response_id: str | msgspec.UnsetType = msgspec.UNSET


def http_headers(error: HeadraceError) -> dict[str, str]:
    after = error.retry_after_s
    headers = {**error.headers, **({} if after is None else {"retry-after": str(after)})}
    if error.spec.http_status == 401:
        headers["www-authenticate"] = 'Bearer realm="headrace"'
    return headers


def http_answer(error: HeadraceError, headers: dict[str, str] | None = None) -> Response:
    return Response(
        http_body(error),
        status_code=error.spec.http_status,
        headers={**http_headers(error), **(headers or {})},
        media_type="application/json",
    )


def http_body(error: HeadraceError) -> bytes:
    return msgspec.json.encode(HttpError(_body(error)))


def socket_event(
    error: HeadraceError,
    *,
    event_id: str | None = None,
    stream_id: str | None = None,
    response_id: str | None = None,
) -> bytes:
    event = SocketError(
        status=error.spec.http_status,
        error=_body(error, http_headers(error) or None),
        event_id=_or_unset(event_id),
        stream_id=_or_unset(stream_id),
        response_id=_or_unset(response_id),
    )
    return msgspec.json.encode(event)


def of_end(code: str | None, message: str, structure: str = "") -> HeadraceError:
    """The error of a response that ended badly. A worker of another version may know codes that this
    gateway does not. ``structure``: the field that asked for structured output, which engines refuse."""
    known = code if code in ERRORS else "internal_error"
    param = structure if structure and known == "engine_rejected" else None
    return HeadraceError(known, message or "The response failed.", param=param)


def internal() -> HeadraceError:
    return HeadraceError("internal_error", "Something went wrong here; it is logged. Try again.")


def coded(error: Exception) -> HeadraceError:
    """What a client is told of it. Anything without a code is a bug: its trace goes into the log, once."""
    if isinstance(error, HeadraceError):
        return error
    log.error("a request could not be served", exc_info=error)
    return internal()


async def answer_coded(request: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)
    return http_answer(error)


async def answer_framework(request: Request, error: Exception) -> Response:
    """404, 405 and whatever else the framework refuses."""
    assert isinstance(error, HTTPException)
    code = _OF_STATUS.get(error.status_code, "invalid_request")
    if error.status_code >= 500:
        code = "internal_error"
    messages = {
        "not_found": f"There is nothing at {request.url.path[:200]}.",
        "method_not_allowed": f"{request.method} is not served at {request.url.path[:200]}.",
    }
    message = messages.get(code, "The request could not be understood.")
    headers = {"allow": _served(request)} if code == "method_not_allowed" else dict(error.headers or {})
    return http_answer(HeadraceError(code, message), headers)


def _served(request: Request) -> str:
    """The methods of a path: the framework tells those of its first route only."""
    routes = request.app.routes
    path = next(route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in routes if route.path == path for method in route.methods}))


async def answer_nobody(request: Request, error: Exception) -> Response:
    """The client hung up; the server wants an answer all the same."""
    return Response(status_code=499)


async def answer_bug(request: Request, error: Exception) -> Response:
    """The server logs the trace."""
    return http_answer(internal())


def _body(error: HeadraceError, headers: dict[str, str] | None = None) -> ErrorBody:
    COUNT.labels(error.code).inc()
    return ErrorBody(
        type=error.spec.type,
        code=error.code,
        message=error.message,
        param=error.param,
        headers=headers or msgspec.UNSET,
    )


def _or_unset(value: str | None) -> Any:
    return msgspec.UNSET if value is None else value
