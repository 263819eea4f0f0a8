"""Updates of a response to the events of the Responses API. Pure: the same updates give the same events.

Numbers follow ``gateway/cursor.py``, so that a client may resume behind any event it has seen, on any
gateway: ``created`` 0, ``queued`` 1, ``in_progress`` 2; item and part are opened by token 1 (1000, 1001)
and its delta is 1002; a later delta has 1000·k of the last token in it; then the events of the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from gateway.api.item_events import GrowthEvent, ItemEvent, Items, Lane, PartEvent, TextDelta, TextDone
from gateway.api.responses_object import (
    Head,
    OutputText,
    Response,
    Status,
    ended,
    item_end,
    item_id,
    message,
    running,
)
from gateway.api.token_logprobs import NONE, Spelling, show
from gateway.cursor import cursor, ending, token_of
from gateway.generation import Ended, Parsed, Queued, Started, Text, Update

CREATED, QUEUED, IN_PROGRESS = cursor(0, 0), cursor(0, 1), cursor(0, 2)
ITEM_ADDED, PART_ADDED, FIRST_DELTA = cursor(1, 0), cursor(1, 1), cursor(1, 2)


class ResponseEvent(msgspec.Struct, frozen=True):
    type: Literal[
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int
    response: Response
    stream_id: Lane
    position: int | msgspec.UnsetType = msgspec.UNSET  # of ``response.queued``
    eta_ms: int | msgspec.UnsetType | None = msgspec.UNSET


Event = ResponseEvent | GrowthEvent
_TERMINAL: dict[str, Literal["response.completed", "response.incomplete", "response.failed"]] = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}


def seen_tokens(after: int) -> int:
    """Where a reader starts whose client has seen the events up to number ``after``: behind the token
    whose text that event showed. Item and part are caused by token 1 but show none of its text."""
    return 0 if after < FIRST_DELTA else token_of(after)


class ResponseEvents:
    """One reader's events. ``after``: the last ``sequence_number`` that its client has seen (-1: none);
    feed it the updates behind ``seen_tokens(after)``, and events up to ``after`` are left out.
    ``output``: all that was released, asked for at the end, which repeats it whoever has seen what.
    ``is_parsed``: it brings
    ``Parsed`` instead of ``Text``, all of it from the first token."""

    def __init__(
        self,
        head: Head,
        output: Callable[[], OutputText],
        spelling: Spelling,
        *,
        after: int = -1,
        stream_id: str | None = None,
        is_parsed: bool = False,
        queued: Queued | None = None,
    ) -> None:
        self._head = head
        self._output = output
        self._spelling = spelling
        self._after = after
        self._lane: Lane = msgspec.UNSET if stream_id is None else stream_id
        self._item_id = item_id(head.id)
        self._is_parsed = is_parsed
        self._queued = queued
        self._in_progress = False
        self._open = False
        self._items: Items | None = None  # where it is parsed

    def opening(self) -> list[Event]:
        """Sent as soon as the response is accepted."""
        return self._unseen([self._plain("response.created", CREATED), self._waits(self._queued)])

    def feed(self, update: Update) -> list[Event]:
        match update:
            case Text():
                return self._unseen(self._text(update))
            case Parsed():
                return self._parsed(update)
            case Ended():
                return self._end(update)
            case Started():
                return self._unseen(self._start())
            case Queued():
                return [self._waits(update)]  # no cursor: told whatever was seen, under the number it has

    def _unseen(self, events: list[Event]) -> list[Event]:
        if self._after < 0:
            return events
        return [event for event in events if event.sequence_number > self._after]

    def _plain(
        self, kind: Literal["response.created", "response.queued", "response.in_progress"], number: int
    ) -> Event:
        status: Status = "in_progress" if kind == "response.in_progress" else "queued"
        return ResponseEvent(kind, number, running(self._head, status), self._lane)

    def _waits(self, queued: Queued | None) -> Event:
        event = self._plain("response.queued", QUEUED)
        if queued is None:
            return event
        return msgspec.structs.replace(event, position=queued.position, eta_ms=queued.eta_ms)

    def _start(self) -> list[Event]:
        if self._in_progress:
            return []
        self._in_progress = True
        return [self._plain("response.in_progress", IN_PROGRESS)]

    def _text(self, update: Text) -> list[Event]:
        events = [] if self._in_progress else self._start()
        if not self._open:
            events += self._opened(ITEM_ADDED, PART_ADDED)
        if update.text or update.logprobs:
            number = FIRST_DELTA if update.end_token == 1 else cursor(update.end_token)
            given = update.logprobs
            logprobs = NONE if given is None else show(update.token_ids, given, self._spelling)
            kind: Literal["response.output_text.delta"] = "response.output_text.delta"
            events.append(TextDelta(kind, number, self._item_id, update.text, logprobs, self._lane))
        return events

    def _parsed(self, update: Parsed) -> list[Event]:
        started = [] if self._in_progress else self._unseen(self._start())
        return [*started, *self._growing().feed(update)]

    def _growing(self) -> Items:
        if self._items is None:
            self._items = Items(self._head, self._spelling, self._lane, self._after)
        return self._items

    def _parsed_end(self, end: Ended) -> list[Event]:
        items = self._growing()
        events, number = items.end(end)
        response = ended(self._head, end, None, items.done)
        return [*events, ResponseEvent(_TERMINAL[end.outcome], number, response, self._lane)]

    def _opened(self, item_number: int, part_number: int) -> list[Event]:
        self._open = True
        item = message(self._head, "in_progress", None)
        return [
            ItemEvent("response.output_item.added", item_number, item, self._lane),
            PartEvent("response.content_part.added", part_number, self._item_id, OutputText(""), self._lane),
        ]

    def _end(self, end: Ended) -> list[Event]:
        """The last event is told to everyone: who asks for what comes behind it would wait for ever."""
        if self._is_parsed:
            return self._parsed_end(end)
        number = ending(end.total)
        events: list[Event] = []
        if end.total > 0 and not self._open:
            events += self._opened(ITEM_ADDED, PART_ADDED)  # its tokens released no text
        elif end.total == 0 and end.outcome == "completed":
            events += self._opened(number, number + 1)  # empty, and yet a message
            number += 2
        content: OutputText | None = None
        if self._open:
            content = self._output()
            events += self._closed(content, end, number)
            number += 3
        response = ended(self._head, end, content)
        return [*self._unseen(events), ResponseEvent(_TERMINAL[end.outcome], number, response, self._lane)]

    def _closed(self, content: OutputText, end: Ended, number: int) -> list[Event]:
        item = message(self._head, item_end(end), content)
        return [
            TextDone(
                "response.output_text.done", number, self._item_id, content.text, content.logprobs, self._lane
            ),
            PartEvent("response.content_part.done", number + 1, self._item_id, content, self._lane),
            ItemEvent("response.output_item.done", number + 2, item, self._lane),
        ]
