"""A slow reader's events: bounded, and nothing of them lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.client.mailbox import MERGE_BEYOND, Mailbox, merged
from tests.unit.gateway.client.model import ITEM, text_of

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("delta"), st.text(max_size=3)),
        st.tuples(st.sampled_from(["added", "position"]), st.just("")),
    ),
    max_size=300,
)


def as_event(number: int, kind: str, text: str) -> dict[str, Any]:
    if kind == "position":
        return {"type": "response.queued", "position": number}
    if kind == "added":
        return {"type": "response.output_item.added", "sequence_number": number}
    delta = {"delta": text, "logprobs": [{"token": text}]}
    return {"type": "response.output_text.delta", "sequence_number": number, **ITEM, **delta}


@given(EVENTS)
def test_merging_keeps_text_log_probabilities_and_order(parts: list[tuple[str, str]]) -> None:
    events = [as_event(number, kind, text) for number, (kind, text) in enumerate(parts)]
    mailbox = Mailbox()
    for event in events:
        mailbox.put(event)
    out = []
    while (event := mailbox.pop()) is not None:
        out.append(event)
    for some in (out, merged(events)):
        assert text_of(some) == text_of(events)
        assert logprobs(some) == logprobs(events)
        numbers = [event["sequence_number"] for event in some if "sequence_number" in event]
        assert numbers == sorted(set(numbers))
        for kind in ("added", "queued"):
            last = [event for event in events if kind in event["type"]][-1:]
            assert [event for event in some if kind in event["type"]][-1:] == last
        structural = [event for event in events if "added" in event["type"]]
        assert [event for event in some if "added" in event["type"]] == structural


def logprobs(events: list[dict[str, Any]]) -> list[Any]:
    return [entry for event in events for entry in event.get("logprobs", ())]


def test_deltas_that_nobody_takes_stay_few() -> None:
    mailbox = Mailbox()
    for number in range(10_000):
        mailbox.put(as_event(number, "delta", "x"))
        assert len(mailbox) <= MERGE_BEYOND
    first = mailbox.pop()
    assert first is not None
    assert first["sequence_number"] == len(first["delta"]) - 1


def test_a_reader_that_keeps_up_sees_each_event_as_it_came() -> None:
    mailbox = Mailbox()
    for number in range(1000):
        event = as_event(number, "delta", "x")
        mailbox.put(event)
        assert mailbox.pop() is event


def test_other_places_are_not_merged() -> None:
    one = as_event(1, "delta", "a")
    other = {**as_event(2, "delta", "b"), "output_index": 1}
    assert merged([one, other]) == [one, other]
