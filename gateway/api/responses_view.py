"""A live response as the Responses API shows it: found, as it stands, or followed. For both transports."""

from __future__ import annotations

from gateway.api.front import OPEN_TENANT, Front
from gateway.api.responses_events import ResponseEvents
from gateway.api.responses_object import Head, OutputText, Response, Status, ended, head, running
from gateway.api.token_logprobs import Spelling, show
from gateway.live import Live
from schemas.errors import HeadraceError
from schemas.ids import parse_response_id


def find(front: Front, response_id: str) -> Live:
    """Raises ``response_not_found``."""
    try:
        live = front.pipeline.find(parse_response_id(response_id), OPEN_TENANT)
    except HeadraceError as error:
        raise HeadraceError(error.code, error.message, param="response_id") from None
    if live is None:
        raise HeadraceError(
            "response_not_found", "No response with this id is held here.", param="response_id"
        )
    return live


def events_of(live: Live, *, after: int = -1, stream_id: str | None = None) -> ResponseEvents:
    return ResponseEvents(
        _head(live), lambda: _output(live), _spelling(live), after=after, stream_id=stream_id
    )


def snapshot(live: Live) -> Response:
    """The response object as of now; text is shown once it has ended."""
    if live.end is None:
        status: Status = "in_progress" if live.started else "queued"
        return running(_head(live), status)
    silent = live.end.total == 0 and live.end.outcome != "completed"
    return ended(_head(live), live.end, None if silent else _output(live))


def _head(live: Live) -> Head:
    return head(live.response_id, live.created_unix_ms, live.model_name, live.generation, live.memory)


def _output(live: Live) -> OutputText:
    return OutputText(live.text, logprobs=show(live.ids, live.log.logprobs, _spelling(live)))


def _spelling(live: Live) -> Spelling:
    return Spelling(live.token_text, live.token_bytes)
