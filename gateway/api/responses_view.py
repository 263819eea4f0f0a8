"""A live response as the Responses API shows it: found, as it stands, or followed. For both transports."""

from __future__ import annotations

from gateway.api.front import OPEN_TENANT, Front
from gateway.api.responses_events import ResponseEvents
from gateway.api.responses_object import Head, OutputText, Response, Status, ended, head, running
from gateway.api.token_logprobs import Spelling, off_loop, show
from gateway.live import Live
from schemas.errors import HeadraceError
from schemas.ids import ResponseId, parse_response_id


def find(front: Front, response_id: str) -> Live:
    """Raises ``response_not_found``."""
    live = front.pipeline.find(_parse(response_id), OPEN_TENANT)
    if live is None:
        raise HeadraceError(
            "response_not_found", "No response with this id is held here.", param="response_id"
        )
    return live


async def cancel(front: Front, response_id: str) -> Live | None:
    """The response, which ends soon or has ended; None for one that another gateway holds. Raises
    ``HeadraceError``: response_not_found, broker_unavailable."""
    response = _parse(response_id)
    try:
        await front.pipeline.cancel(response, OPEN_TENANT)
    except HeadraceError as error:
        param = "response_id" if error.code == "response_not_found" else error.param
        raise HeadraceError(error.code, error.message, param=param) from error
    return front.pipeline.find(response, OPEN_TENANT)


def events_of(front: Front, live: Live, *, after: int = -1, stream_id: str | None = None) -> ResponseEvents:
    spelling = front.spellings.of(live)
    return ResponseEvents(
        _head(live), lambda: _output(live, spelling), spelling, after=after, stream_id=stream_id
    )


async def snapshot(front: Front, live: Live) -> Response:
    """The response object as of now; text is shown once it has ended."""
    end = live.end
    if end is None:
        status: Status = "in_progress" if live.started else "queued"
        return running(_head(live), status)
    silent = end.total == 0 and end.outcome != "completed"
    spelling = front.spellings.of(live)
    output = None if silent else await off_loop(live, [end], lambda: _output(live, spelling))
    return ended(_head(live), end, output)


def _parse(response_id: str) -> ResponseId:
    try:
        return parse_response_id(response_id)
    except HeadraceError as error:
        raise HeadraceError(error.code, error.message, param="response_id") from None


def _head(live: Live) -> Head:
    return head(live.response_id, live.created_unix_ms, live.model_name, live.generation, live.memory)


def _output(live: Live, spelling: Spelling) -> OutputText:
    return OutputText(live.text, logprobs=show(live.ids, live.log.logprobs, spelling))
