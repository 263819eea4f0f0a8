"""What a gateway shows of one response, after gateway/PROTOCOL.md: its events behind any number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Event = dict[str, Any]
RESPONSE_ID = "resp_01"
ITEM: Event = {"item_id": "msg_01", "output_index": 0, "content_index": 0}


class ModelResponse:
    """``tokens`` of the log so far are ``stored``; it is over once all are."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tokens
        self.stored = 0
        self.started = False
        self.ended = False

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    def advance(self, count: int) -> None:
        self.started = True
        self.ended = self.stored == len(self.tokens)
        self.stored = min(len(self.tokens), self.stored + count)


class ModelFollower:
    """One ``response.resume`` or ``response.create`` that is being answered on ``lane``."""

    def __init__(self, response: ModelResponse, lane: str, after: int) -> None:
        self._response = response
        self._lane = lane
        self._after = after
        self._token = 0 if after < 1002 else after // 1000
        self.sent: list[Event] = []  # and not yet received

    def look(self) -> None:
        """Sends what is new, the text of all new tokens as one delta."""
        self._send("response.created", 0, response={"id": RESPONSE_ID})
        self._send("response.queued", 1, response={"id": RESPONSE_ID})
        if self._response.started:
            self._send("response.in_progress", 2, response={"id": RESPONSE_ID})
        stored = self._response.stored
        if stored:
            self._send("response.output_item.added", 1000)
            self._send("response.content_part.added", 1001)
            text = "".join(self._response.tokens[self._token : stored])
            self._send(
                "response.output_text.delta", 1002 if stored == 1 else 1000 * stored, delta=text, **ITEM
            )
            self._token = stored
        if self._response.ended:
            end = 1000 * (stored + 1) + 1
            self._send("response.output_text.done", end, text=self._response.text, **ITEM)
            self._send("response.completed", end + 3, response={"id": RESPONSE_ID, "status": "completed"})

    def tell_position(self, position: int) -> None:
        """Again under the same number, for as long as it waits."""
        if self._after == 1:
            queued = {"type": "response.queued", "sequence_number": 1, "position": position}
            self.sent.append({**queued, "stream_id": self._lane})

    def _send(self, kind: str, number: int, **fields: Any) -> None:
        if number > self._after:
            self._after = number
            self.sent.append({"type": kind, "sequence_number": number, "stream_id": self._lane, **fields})


def text_of(events: Sequence[Event]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def is_place(event: Event) -> bool:
    return bool(event["type"] == "response.queued")


def check_whole(events: Sequence[Event], text: str) -> None:
    """Every event once, in order, from the first to the one terminal event; the place in the queue as often
    as it is told."""
    once = [
        event for at, event in enumerate(events) if not (at and is_place(event) and is_place(events[at - 1]))
    ]
    numbers = [event["sequence_number"] for event in once]
    assert all(before < after for before, after in pairwise(numbers)), numbers
    kinds = [event["type"] for event in once]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-2:] == ["response.output_text.done", "response.completed"]
    assert all(kind == "response.output_text.delta" for kind in kinds[5:-2])
    assert text_of(events) == text
    assert not any("stream_id" in event for event in events)
