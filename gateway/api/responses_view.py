"""A live response as the Responses API shows it: found, as it stands, or followed. For both transports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import UNSET

from gateway.api.front import Front
from gateway.api.item_events import Items
from gateway.api.responses_events import ResponseEvents, seen_tokens
from gateway.api.responses_object import OutputText, Response, Status, ended, head, running
from gateway.api.token_logprobs import Spelling, off_loop, show
from gateway.caller import Caller
from gateway.generation import Ended, Parsed
from gateway.live import Live
from schemas.errors import HeadraceError
from schemas.ids import parse_response_id
from schemas.job import Job


async def attach(front: Front, caller: Caller, response_id: str) -> Live:
    """A response of any gateway. Raises ``HeadraceError``: response_not_found, broker_unavailable."""
    with _about_the_id():
        return await front.pipeline.attach(parse_response_id(response_id), caller.tenant)


async def cancel(front: Front, caller: Caller, response_id: str) -> None:
    """It ends soon, or has ended. Raises as ``attach``."""
    with _about_the_id():
        await front.pipeline.cancel(parse_response_id(response_id), caller.tenant)


async def delete(front: Front, caller: Caller, response_id: str) -> None:
    """Raises as ``attach``, and context_unavailable."""
    with _about_the_id():
        await front.pipeline.delete(parse_response_id(response_id), caller.tenant)


async def request_of(front: Front, caller: Caller, response_id: str) -> Job:
    """Raises as ``attach``."""
    with _about_the_id():
        return await front.pipeline.find_request(parse_response_id(response_id), caller.tenant)


@contextmanager
def _about_the_id() -> Iterator[None]:
    try:
        yield
    except HeadraceError as error:
        if error.code != "response_not_found":
            raise
        raise HeadraceError(error.code, error.message, param="response_id") from error


def first_token(live: Live, after: int) -> int:
    """Where the reader starts whose client has seen the events up to ``after``. Which item of a parsed
    response is open depends on all that came before."""
    return 0 if live.is_parsed else seen_tokens(after)


def events_of(front: Front, live: Live, *, after: int = -1, stream_id: str | None = None) -> ResponseEvents:
    spelling = front.spellings.of(live)
    return ResponseEvents(
        head(live.job),
        lambda: _output(live, spelling),
        spelling,
        after=after,
        stream_id=stream_id,
        is_parsed=live.is_parsed,
        queued=live.queued,
    )


async def snapshot(front: Front, live: Live) -> Response:
    """The response object as of now; text is shown once it has ended."""
    end = live.end
    if end is None:
        status: Status = "in_progress" if live.started else "queued"
        return running(head(live.job), status)
    if live.is_parsed:
        return await off_loop(live, [end], lambda: _ended_items(live, front.spellings.of(live), end))
    silent = end.total == 0 and end.outcome != "completed"
    spelling = front.spellings.of(live)
    output = None if silent else await off_loop(live, [end], lambda: _output(live, spelling))
    return ended(head(live.job), end, output)


def _ended_items(live: Live, spelling: Spelling, end: Ended) -> Response:
    items = Items(head(live.job), spelling, UNSET, after=-1)
    whole = live.text_since(0)
    if isinstance(whole, Parsed):
        items.feed(whole)
    items.end(end)
    return ended(head(live.job), end, None, items.done)


def _output(live: Live, spelling: Spelling) -> OutputText:
    return OutputText(live.text, logprobs=show(live.ids, live.log.logprobs, spelling))
