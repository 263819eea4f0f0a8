"""Events that wait for a slow reader. Pure.

Nothing is dropped and nobody waits: beyond a bound, text deltas that follow each other become one, as the
gateway merges them (the last number of its parts), so that what is held is at most the response itself.
One slow reader of a connection that many share must not hold up the others, as it would if reading stopped.
"""

from __future__ import annotations

from collections import deque

from gateway.client.errors import JsonObject

MERGE_BEYOND = 64  # events; a reader that keeps up sees each as it came
_PLACE = ("type", "item_id", "output_index", "content_index")


class Mailbox:
    def __init__(self) -> None:
        self._events: deque[JsonObject] = deque()
        self._merge_at = MERGE_BEYOND

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: JsonObject) -> None:
        self._events.append(event)
        if len(self._events) > self._merge_at:
            self._events = deque(merged(list(self._events)))
            # where little could be merged: not again for each event
            self._merge_at = max(MERGE_BEYOND, 2 * len(self._events))

    def pop(self) -> JsonObject | None:
        return self._events.popleft() if self._events else None


def merged(events: list[JsonObject]) -> list[JsonObject]:
    """With each run of deltas of one place as one delta, and of each run of queue positions, and of events
    without a number, the last of its type: only the newest is true."""
    result: list[JsonObject] = []
    run: list[JsonObject] = []
    for event in events:
        if run and not _continues(run[-1], event):
            result.append(_joined(run))
            run = []
        run.append(event)
    if run:
        result.append(_joined(run))
    return result


def _continues(before: JsonObject, event: JsonObject) -> bool:
    if any(before.get(key) != event.get(key) for key in _PLACE):
        return False
    if event.get("type") == "response.queued":
        return True
    if "sequence_number" not in before and "sequence_number" not in event:
        return True
    return isinstance(before.get("delta"), str) and isinstance(event.get("delta"), str)


def _joined(run: list[JsonObject]) -> JsonObject:
    last = run[-1]
    if len(run) == 1 or "delta" not in last:
        return last
    whole = {**last, "delta": "".join(event["delta"] for event in run)}
    if "logprobs" in last:
        whole["logprobs"] = [entry for event in run for entry in event.get("logprobs") or ()]
    return whole
