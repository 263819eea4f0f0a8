"""The one table of error codes: what a client is told, and what happens to the job.

A code belongs to one of three kinds: the client's fault (refused, never retried), passing trouble
(worth a retry, with a delay), or ours (the process reports it and, where its state is in doubt, exits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    CLIENT = "client"
    PASSING = "passing"
    OURS = "ours"


class QueueAction(Enum):
    """What a worker does with the job when a response meets this error."""

    NONE = "none"  # refused before it became a job
    ACK = "ack"  # a terminal event was written: the job is over
    NAK = "nak"  # another worker may do better: redeliver
    DEAD = "dead"  # copy to DEAD with the reason, then ack


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """One row. ``http_status`` is used for HTTP answers and as ``status`` of WebSocket errors;
    ``ws_close`` is the close code where the connection cannot go on (None: it lives on)."""

    type: str  # OpenAI's error type
    http_status: int
    fault: Fault
    queue: QueueAction = QueueAction.NONE
    ws_close: int | None = None
    retry_after_s: int | None = None


_C, _P, _O = Fault.CLIENT, Fault.PASSING, Fault.OURS
_BAD = "invalid_request_error"

ERRORS: dict[str, ErrorSpec] = {
    # what the client sent
    "invalid_json": ErrorSpec(_BAD, 400, _C),
    "invalid_encoding": ErrorSpec(_BAD, 400, _C),
    "invalid_request": ErrorSpec(_BAD, 400, _C),
    "unknown_event": ErrorSpec(_BAD, 400, _C),
    "unknown_parameter": ErrorSpec(_BAD, 400, _C),
    "unsupported_parameter": ErrorSpec(_BAD, 400, _C),
    "invalid_value": ErrorSpec(_BAD, 400, _C),
    "invalid_token_id": ErrorSpec(_BAD, 400, _C, QueueAction.ACK),
    "context_length_exceeded": ErrorSpec(_BAD, 400, _C, QueueAction.ACK),
    "payload_too_large": ErrorSpec(_BAD, 413, _C),
    "model_not_found": ErrorSpec(_BAD, 404, _C),
    "response_not_found": ErrorSpec(_BAD, 404, _C),
    "previous_response_not_found": ErrorSpec(_BAD, 400, _C),
    "conversation_not_found": ErrorSpec(_BAD, 404, _C),
    "conversation_busy": ErrorSpec(_BAD, 409, _C),
    "idempotency_conflict": ErrorSpec(_BAD, 409, _C),
    "not_found": ErrorSpec(_BAD, 404, _C),
    "method_not_allowed": ErrorSpec(_BAD, 405, _C),
    "forbidden": ErrorSpec("permission_error", 403, _C, ws_close=4403),
    "invalid_api_key": ErrorSpec(_BAD, 401, _C, ws_close=4401),
    "request_timeout": ErrorSpec(_BAD, 408, _C),
    "head_too_large": ErrorSpec(_BAD, 431, _C),
    # limits
    "too_many_attempts": ErrorSpec("rate_limit_error", 429, _C, ws_close=1013, retry_after_s=60),
    "too_many_responses": ErrorSpec("rate_limit_error", 429, _C, retry_after_s=1),
    "too_many_connections": ErrorSpec("rate_limit_error", 429, _P, ws_close=1013, retry_after_s=5),
    "queue_full": ErrorSpec("rate_limit_error", 429, _P, retry_after_s=5),
    "rate_limit_exceeded": ErrorSpec("rate_limit_error", 429, _C),
    "deadline_unreachable": ErrorSpec("rate_limit_error", 429, _P, retry_after_s=5),
    # ends of an accepted response
    "cancelled": ErrorSpec(_BAD, 409, _C, QueueAction.ACK),
    "deadline_exceeded": ErrorSpec("timeout_error", 504, _P, QueueAction.ACK),
    "engine_rejected": ErrorSpec(_BAD, 400, _C, QueueAction.ACK),
    "invalid_job": ErrorSpec("server_error", 500, _O, QueueAction.DEAD),
    "poison": ErrorSpec("server_error", 500, _O, QueueAction.DEAD),
    # passing trouble
    "broker_unavailable": ErrorSpec("server_error", 503, _P, retry_after_s=2),
    "storage_full": ErrorSpec("server_error", 503, _P, retry_after_s=10),
    "no_worker": ErrorSpec("server_error", 503, _P, retry_after_s=5),
    "context_unavailable": ErrorSpec("server_error", 503, _P, retry_after_s=2),
    "auth_unavailable": ErrorSpec("server_error", 503, _P, ws_close=1013, retry_after_s=5),
    "going_away": ErrorSpec("server_error", 503, _P, QueueAction.NAK, ws_close=1012, retry_after_s=1),
    # ours
    "engine_failed": ErrorSpec("server_error", 500, _O, QueueAction.NAK),
    "internal_error": ErrorSpec("server_error", 500, _O, QueueAction.NAK),
}


class HeadraceError(Exception):
    """A refusal or failure with a code of the table. ``message`` tells the client what to change;
    ``param`` names the field at fault, as a path such as ``input[0].content``. ``retry_after_s``: where more
    is known than the table says. ``headers``: what HTTP says beside it."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.spec = ERRORS[code]
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = self.spec.retry_after_s if retry_after_s is None else retry_after_s
        self.headers = headers or {}
        super().__init__(f"{code}: {message}")

    def body(self) -> dict[str, str | None]:
        """OpenAI's error object: ``{"type", "code", "message", "param"}``."""
        return {"type": self.spec.type, "code": self.code, "message": self.message, "param": self.param}
