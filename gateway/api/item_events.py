"""The output items of a response that is more than one message, as they grow: reasoning, messages, calls.

Events have the number of the token that caused them and their ordinal among its events; a delta that is
merged has the last number of its parts. Pure: however the pieces come in, numbers and texts are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from gateway.api.responses_object import (
    FunctionCall,
    Head,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    item_end,
    item_id,
)
from gateway.api.token_logprobs import NONE, Spelling, show
from gateway.cursor import FIRST_ENDING, STEP, cursor
from gateway.generation import Ended, Parsed
from gateway.output.pieces import Arguments, CallClosed, CallOpened, Piece, Reasoning, Words
from schemas.ids import call_id
from schemas.reply import TokenLogprobs

Lane = str | msgspec.UnsetType


class ItemEvent(msgspec.Struct, frozen=True):
    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    item: OutputItem
    stream_id: Lane
    output_index: int = 0


class PartEvent(msgspec.Struct, frozen=True):
    type: Literal["response.content_part.added", "response.content_part.done"]
    sequence_number: int
    item_id: str
    part: OutputText | ReasoningText
    stream_id: Lane
    output_index: int = 0
    content_index: int = 0


class TextDelta(msgspec.Struct, frozen=True):
    type: Literal["response.output_text.delta"]
    sequence_number: int
    item_id: str
    delta: str
    logprobs: msgspec.Raw
    stream_id: Lane
    output_index: int = 0
    content_index: int = 0


class TextDone(msgspec.Struct, frozen=True):
    type: Literal["response.output_text.done"]
    sequence_number: int
    item_id: str
    text: str
    logprobs: msgspec.Raw
    stream_id: Lane
    output_index: int = 0
    content_index: int = 0


class ReasoningDelta(msgspec.Struct, frozen=True):
    type: Literal["response.reasoning_text.delta"]
    sequence_number: int
    item_id: str
    delta: str
    stream_id: Lane
    output_index: int = 0
    content_index: int = 0


class ReasoningDone(msgspec.Struct, frozen=True):
    type: Literal["response.reasoning_text.done"]
    sequence_number: int
    item_id: str
    text: str
    stream_id: Lane
    output_index: int = 0
    content_index: int = 0


class ArgumentsDelta(msgspec.Struct, frozen=True):
    type: Literal["response.function_call_arguments.delta"]
    sequence_number: int
    item_id: str
    delta: str
    stream_id: Lane
    output_index: int = 0


class ArgumentsDone(msgspec.Struct, frozen=True):
    type: Literal["response.function_call_arguments.done"]
    sequence_number: int
    item_id: str
    name: str
    arguments: str
    stream_id: Lane
    output_index: int = 0


GrowthEvent = (
    ItemEvent
    | PartEvent
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
Logprobs = list[tuple[int, TokenLogprobs]]


class Items:
    """``after``: as for ``ResponseEvents``; what came up to it is followed, too, but shown no more.
    ``done``: the items that are complete."""

    def __init__(self, head: Head, spelling: Spelling, lane: Lane, after: int) -> None:
        self._head = head
        self._spelling = spelling
        self._lane = lane
        self._after = after
        self._open: OutputItem | None = None
        self._text: list[str] = []  # of the open item
        self._logprobs: Logprobs = []  # of the open message
        self._untold: Logprobs = []  # of tokens whose text has not come yet
        self._calls = 0
        self._token, self._ordinal = 0, 0  # of the next event
        self._events: list[GrowthEvent] = []
        self._delta: list[str] = []  # not told yet, of the open item
        self._delta_logprobs: Logprobs = []
        self._delta_number = -1
        self.done: list[OutputItem] = []

    def feed(self, update: Parsed) -> list[GrowthEvent]:
        pieces = dict(update.entries)
        if update.logprobs is None:
            for token, brought in update.entries:
                self._take(token, brought)
        else:
            given = zip(update.token_ids, update.logprobs, strict=False)
            for token in range(update.first_token + 1, update.end_token + 1):
                if (told := next(given, None)) is not None:
                    self._untold.append(told)
                self._take(token, pieces.get(token, ()))
        return self._told()

    def end(self, end: Ended) -> tuple[list[GrowthEvent], int]:
        """What closes the open item, and the number behind that. A response that is complete has an item."""
        self._at(end.total + 1)
        self._ordinal = max(self._ordinal, FIRST_ENDING)
        if self._open is None and not self.done and (end.total > 0 or end.outcome == "completed"):
            self._open_item("message")
        if self._open is not None:
            self._close(item_end(end))
        return self._told(), self._number()

    def _take(self, token: int, pieces: Sequence[Piece]) -> None:
        self._at(token)
        for piece in pieces:
            match piece:
                case Words(text):
                    self._grow("message", text)
                case Reasoning(text):
                    self._grow("reasoning", text)
                case CallOpened(name):
                    self._open_item("function_call", name)
                case Arguments(text):
                    self._add(text)
                case CallClosed():
                    self._close("completed")

    def _grow(self, kind: Literal["message", "reasoning"], text: str) -> None:
        wanted = OutputMessage if kind == "message" else ReasoningItem
        if not isinstance(self._open, wanted):
            self._open_item(kind)
        self._add(text)

    def _add(self, text: str) -> None:
        number = self._number()
        self._text.append(text)
        told = self._untold if isinstance(self._open, OutputMessage) else []
        self._logprobs += told
        if number > self._after:
            self._delta.append(text)
            self._delta_logprobs += told
            self._delta_number = number
        self._untold = []

    def _open_item(self, kind: Literal["message", "reasoning", "function_call"], name: str = "") -> None:
        if self._open is not None:
            self._close("completed")
        self._untold = self._untold if kind == "message" else []
        id_ = item_id(self._head.id, kind, len(self.done))
        self._open = self._made(kind, id_, name)
        self._event(ItemEvent, "response.output_item.added", self._open)
        if kind != "function_call":
            part = OutputText("") if kind == "message" else ReasoningText("")
            self._event(PartEvent, "response.content_part.added", id_, part)

    def _made(self, kind: str, id_: str, name: str) -> OutputItem:
        if kind == "message":
            return OutputMessage(id_, "in_progress", [])
        if kind == "reasoning":
            return ReasoningItem(id_, "in_progress", [])
        self._calls += 1
        return FunctionCall(id_, "in_progress", call_id(self._head.id, self._calls - 1), name, "")

    def _close(self, status: ItemStatus) -> None:
        self._tell_delta()
        item, text = self._open, "".join(self._text)
        closed: OutputItem
        match item:
            case OutputMessage():
                logprobs = self._shown(self._logprobs)
                content = OutputText(text, logprobs=logprobs)
                self._event(TextDone, "response.output_text.done", item.id, text, logprobs)
                self._event(PartEvent, "response.content_part.done", item.id, content)
                closed = msgspec.structs.replace(item, status=status, content=[content])
            case ReasoningItem():
                thought = ReasoningText(text)
                self._event(ReasoningDone, "response.reasoning_text.done", item.id, text)
                self._event(PartEvent, "response.content_part.done", item.id, thought)
                closed = msgspec.structs.replace(item, status=status, content=[thought])
            case FunctionCall():
                self._event(ArgumentsDone, "response.function_call_arguments.done", item.id, item.name, text)
                closed = msgspec.structs.replace(item, status=status, arguments=text)
            case None:
                raise RuntimeError("there is no item to close")
        self._event(ItemEvent, "response.output_item.done", closed)
        self.done.append(closed)
        self._open = None
        self._text, self._logprobs = [], []

    # -- events -------------------------------------------------------------------------------------

    def _at(self, token: int) -> None:
        if token != self._token:
            self._token, self._ordinal = token, 0

    def _number(self) -> int:
        self._ordinal += 1
        return cursor(self._token, min(self._ordinal, STEP) - 1)

    def _event(self, kind: type[GrowthEvent], name: str, *fields: object) -> None:
        """Fields as the struct has them between its number and the lane."""
        self._tell_delta()
        number = self._number()
        if number > self._after:
            self._events.append(kind(name, number, *fields, self._lane, len(self.done)))  # type: ignore[arg-type,call-arg]

    def _tell_delta(self) -> None:
        if not self._delta:
            return
        text, number, at = "".join(self._delta), self._delta_number, len(self.done)
        match self._open:
            case OutputMessage(id=id_):
                logprobs = self._shown(self._delta_logprobs)
                kind: Literal["response.output_text.delta"] = "response.output_text.delta"
                self._events.append(TextDelta(kind, number, id_, text, logprobs, self._lane, at))
            case ReasoningItem(id=id_):
                event = ReasoningDelta("response.reasoning_text.delta", number, id_, text, self._lane, at)
                self._events.append(event)
            case FunctionCall(id=id_):
                self._events.append(
                    ArgumentsDelta(
                        "response.function_call_arguments.delta", number, id_, text, self._lane, at
                    )
                )
        self._delta, self._delta_logprobs = [], []

    def _told(self) -> list[GrowthEvent]:
        self._tell_delta()
        events, self._events = self._events, []
        return events

    def _shown(self, logprobs: Logprobs) -> msgspec.Raw:
        if not logprobs:
            return NONE
        return show([id_ for id_, _ in logprobs], [at for _, at in logprobs], self._spelling)
