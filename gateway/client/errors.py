"""Errors as the gateway tells them (``gateway/PROTOCOL.md``, Errors), read from its JSON."""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]


class ResponseError(Exception):
    """A refusal, a response that failed, or no gateway for too long.

    ``code`` is one of the gateway's, or ``unreachable`` (no gateway could be reached until patience was used
    up), ``connection_refused`` (a gateway that does not want this client, without saying why) or
    ``client_closed``. ``status``: the HTTP status that goes with it. ``param``: the field at fault, if any.
    ``retry_after_s``: given where trying again is worth it, which the client has then done.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.status = status
        self.param = param
        self.retry_after_s = retry_after_s
        super().__init__(f"{code}: {message}")


def of_error_event(event: JsonObject) -> ResponseError:
    """Of an ``error`` event of the WebSocket."""
    body = event.get("error") or {}
    return ResponseError(
        body.get("code") or "internal_error",
        body.get("message") or "",
        status=event.get("status") or 500,
        param=body.get("param"),
        retry_after_s=_seconds((body.get("headers") or {}).get("retry-after")),
    )


def of_failed(response: JsonObject) -> ResponseError:
    """Of the response object of ``response.failed``."""
    body = response.get("error") or {}
    return ResponseError(body.get("code") or "internal_error", body.get("message") or "", status=500)


def _seconds(header: object) -> float | None:
    try:
        return float(header) if isinstance(header, str | int | float) else None
    except ValueError:  # HTTP also allows a date; no gateway sends one
        return None
