"""Events and chunks against the official SDK's own types, and their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import responses as sdk
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from broker import stages
from broker.stages import Parts
from gateway.api.chat_events import DONE, ChatChunks, completion
from gateway.api.responses_events import Event, ResponseEvents, seen_tokens
from gateway.api.responses_object import Echo, Head, OutputText, Response, head, running
from gateway.api.token_logprobs import Spelling
from gateway.generation import Ended, Started, Text, Update
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ModelToken, SessionToken, TenantId, new_response_id
from schemas.job import Job, Presentation
from schemas.reply import Timings, TokenLogprobs, Usage
from schemas.sampling import Sampling

SPELLING = Spelling(raw=lambda i: b"<%d>" % i, known={})
RESPONSE = new_response_id()
SDK_TYPES: dict[str, type[BaseModel]] = {
    "response.created": sdk.ResponseCreatedEvent,
    "response.queued": sdk.ResponseQueuedEvent,
    "response.in_progress": sdk.ResponseInProgressEvent,
    "response.output_item.added": sdk.ResponseOutputItemAddedEvent,
    "response.content_part.added": sdk.ResponseContentPartAddedEvent,
    "response.output_text.delta": sdk.ResponseTextDeltaEvent,
    "response.output_text.done": sdk.ResponseTextDoneEvent,
    "response.content_part.done": sdk.ResponseContentPartDoneEvent,
    "response.output_item.done": sdk.ResponseOutputItemDoneEvent,
    "response.completed": sdk.ResponseCompletedEvent,
    "response.incomplete": sdk.ResponseIncompleteEvent,
    "response.failed": sdk.ResponseFailedEvent,
}
# Wider on purpose than the SDK's literals, which it does not enforce; see gateway/PROTOCOL.md.
OUR_WORDS = {"cancelled", "engine_failed", "deadline_exceeded"}


def a_job(past: Mapping[str, Any] | None = None, **echo: Any) -> Job:
    shown = {"conversation": "c"} if past is None else past
    return Job(
        response=RESPONSE,
        tenant=TenantId("t"),
        session=SessionToken("s"),
        gateway=GatewayId("gw"),
        model=ModelToken("m"),
        model_name="m",
        prompt_ids=(1, 2, 3),
        sampling=Sampling(max_tokens=9),
        presentation=Presentation(
            api="responses", echo=msgspec.json.encode(Echo(**echo)).decode(), memory="on", **shown
        ),
        created_unix_ms=1_700_000_000_123,
        deadline_unix_ms=1_700_000_300_123,
    )


def a_head(**echo: Any) -> Head:
    return head(a_job(**echo))


PARTS = Parts(
    edge_ms=1, queue_ms=1.5, engine_queue_ms=0.5, prefill_ms=2, decode_ms=4, reconnect_ms=0.5, transport_ms=1
)


def end(outcome: Any = "completed", total: int = 0, **more: Any) -> Ended:
    usage = Usage(prompt_tokens=5, cached_tokens=2, completion_tokens=total)
    told = {"timings": Timings(queue_ms=1.5), "parts": PARTS, "ttft_ms": 3.0, "total_ms": 10.0, **more}
    return Ended(outcome, total, usage=usage, **told)


def text_of(updates: Iterable[Update]) -> str:
    return "".join(update.text for update in updates if isinstance(update, Text))


def play(
    updates: Sequence[Update], *, whole: str | None = None, after: int = -1, **options: Any
) -> list[Event]:
    released = text_of(updates) if whole is None else whole
    events = ResponseEvents(a_head(), lambda: OutputText(released), SPELLING, after=after, **options)
    played = events.opening()
    for update in updates:
        played += events.feed(update)
    return played


def as_sdk(event: Event) -> BaseModel:
    data: dict[str, Any] = json.loads(msgspec.json.encode(event))
    if (response := data.get("response")) is not None:
        if (error := response["error"]) and error["code"] in OUR_WORDS:
            error["code"] = "server_error"
        if (details := response["incomplete_details"]) and details["reason"] in OUR_WORDS:
            details["reason"] = "max_output_tokens"
    return SDK_TYPES[data["type"]].model_validate(data, strict=True)


def words(events: Iterable[Event]) -> list[tuple[str, int]]:
    return [(event.type.removeprefix("response."), event.sequence_number) for event in events]


ANSWER: list[Update] = [
    Started(),
    Text("He", 0, 1),
    Text("llo", 1, 2),
    Text("!", 2, 5),
    end(total=5, reason="stop"),
]
ENDS = [
    end(total=0, reason="stop"),
    end("incomplete", 3, reason="length"),
    end("cancelled", 0, reason="cancelled"),
    end("cancelled", 2, reason="cancelled"),
    end("failed", 0, code="engine_failed", message="it died"),
    end("failed", 2, reason="deadline", code="deadline_exceeded", message="too late"),
]


def test_the_events_of_an_answer_and_their_numbers() -> None:
    assert words(play(ANSWER)) == [
        ("created", 0),
        ("queued", 1),
        ("in_progress", 2),
        ("output_item.added", 1000),
        ("content_part.added", 1001),
        ("output_text.delta", 1002),
        ("output_text.delta", 2000),
        ("output_text.delta", 5000),
        ("output_text.done", 6001),
        ("content_part.done", 6002),
        ("output_item.done", 6003),
        ("completed", 6004),
    ]


@pytest.mark.parametrize("ended", [ANSWER[-1], *ENDS])
def test_every_event_is_what_the_sdk_expects(ended: Ended) -> None:
    texts: list[Update] = [Text("ab", 0, ended.total)] if ended.total else []
    for event in play((Started(), *texts, ended), stream_id="lane"):
        assert as_sdk(event).model_extra == {"stream_id": "lane"}


def test_the_object_at_the_end() -> None:
    last = play(ANSWER)[-1]
    parsed = sdk.ResponseCompletedEvent.model_validate_json(msgspec.json.encode(last)).response
    assert parsed.output_text == "Hello!"
    assert parsed.id == RESPONSE
    assert parsed.output[0].id == "msg_" + RESPONSE.removeprefix("resp_")
    assert parsed.status == "completed"
    assert parsed.conversation is not None
    assert parsed.conversation.id == "c"
    assert parsed.usage is not None
    assert (parsed.usage.input_tokens, parsed.usage.output_tokens, parsed.usage.total_tokens) == (5, 5, 10)
    assert parsed.usage.input_tokens_details.cached_tokens == 2
    assert parsed.model_extra is not None
    timings = parsed.model_extra["timings"]
    assert (timings["queue_ms"], timings["engine_queue_ms"]) == (1.5, 0.5)
    assert sum(timings[f"{part}_ms"] for part in stages.PARTS) == timings["total_ms"] == 10
    assert parsed.model_extra["memory"] == "on"


@pytest.mark.parametrize(
    ("past", "truncation"),
    [
        ({}, "disabled"),
        ({"conversation": "c"}, "auto"),
        ({"previous_response_id": new_response_id()}, "auto"),
    ],
)
def test_it_says_whether_old_rounds_may_be_dropped(past: dict[str, Any], truncation: str) -> None:
    said = running(head(a_job(past)), "queued")
    assert sdk.Response.model_validate_json(msgspec.json.encode(said)).truncation == truncation


def test_an_empty_completion_is_a_message_all_the_same() -> None:
    assert words(play([Started(), end(total=0, reason="stop")]))[3:] == [
        ("output_item.added", 1001),
        ("content_part.added", 1002),
        ("output_text.done", 1003),
        ("content_part.done", 1004),
        ("output_item.done", 1005),
        ("completed", 1006),
    ]


def test_tokens_without_text_open_the_message_before_it_ends() -> None:
    assert words(play([Started(), end(total=3, reason="stop")]))[3:] == [
        ("output_item.added", 1000),
        ("content_part.added", 1001),
        ("output_text.done", 4001),
        ("content_part.done", 4002),
        ("output_item.done", 4003),
        ("completed", 4004),
    ]


@pytest.mark.parametrize(
    ("ended", "kind", "status", "reason"),
    [
        (ENDS[1], "response.incomplete", "incomplete", "max_output_tokens"),
        (ENDS[2], "response.incomplete", "cancelled", "cancelled"),
        (ENDS[4], "response.failed", "failed", None),
    ],
)
def test_how_an_end_is_told(ended: Ended, kind: str, status: str, reason: str | None) -> None:
    last = play([ended])[-1]
    assert last.type == kind
    response: Response = last.response  # type: ignore[union-attr]
    assert response.status == status
    assert (response.incomplete_details and response.incomplete_details.reason) == reason
    assert (response.error is not None) == (status == "failed")


def test_a_response_that_failed_before_its_first_token_has_no_message() -> None:
    assert words(play([ENDS[4]])) == [("created", 0), ("queued", 1), ("failed", 1001)]


def test_a_code_of_another_version_is_still_an_error() -> None:
    last = play([end("failed", 0, code="not_yet_invented", message="?")])[-1]
    assert last.response.error is not None  # type: ignore[union-attr]
    assert last.response.error.type == "server_error"  # type: ignore[union-attr]


def test_logprobs_of_a_delta() -> None:
    logprobs = (TokenLogprobs(-0.5, ((7, -0.5), (8, float("-inf")))),)
    delta = play([Started(), Text("", 0, 1, token_ids=(7,), logprobs=logprobs)])[-1]
    parsed = sdk.ResponseTextDeltaEvent.model_validate_json(msgspec.json.encode(delta))
    assert [(p.token, p.logprob) for p in parsed.logprobs] == [("<7>", -0.5)]
    assert parsed.logprobs[0].top_logprobs is not None
    assert parsed.logprobs[0].top_logprobs[1].logprob == -9999.0


pieces = st.lists(st.sampled_from(["", "a", "bc", "é"]), max_size=8)


def updates_from(token: int, released: list[str], cuts: list[bool]) -> list[Update]:
    """A reader's updates behind ``token`` tokens, merged where ``cuts`` says so."""
    updates: list[Update] = [Started()]
    first, held = token, ""
    for k in range(token, len(released)):
        held += released[k]
        if cuts[k] or k == len(released) - 1:
            if held:
                updates.append(Text(held, first, k + 1))
            first, held = k + 1, ""
    return [*updates, end(total=len(released), reason="stop")]


@given(released=pieces, data=st.data())
def test_resuming_behind_any_event_gives_exactly_what_is_missing(
    released: list[str], data: st.DataObject
) -> None:
    """However either reader merges, text before and after the break joins to the whole, in order. Behind the
    last event, that one is told again."""
    cuts = [data.draw(st.booleans()) for _ in range(8)]
    again = [data.draw(st.booleans()) for _ in range(8)]
    whole = "".join(released)
    first = play(updates_from(0, released, cuts), whole=whole)
    seen = data.draw(st.integers(0, len(first) - 1))
    after = first[seen].sequence_number
    rest = play(
        updates_from(min(seen_tokens(after), len(released)), released, again), whole=whole, after=after
    )
    joined = [*first[: min(seen + 1, len(first) - 1)], *rest]
    numbers = [event.sequence_number for event in joined]
    assert numbers == sorted(set(numbers))
    assert "".join(getattr(event, "delta", "") for event in joined) == whole
    structure = [event.type for event in first if "delta" not in event.type]
    assert [event.type for event in joined if "delta" not in event.type] == structure


def chunks(updates: Sequence[Update], **options: Any) -> list[bytes]:
    made = ChatChunks(
        RESPONSE,
        1_700_000_000,
        "m",
        SPELLING,
        **{"include_usage": False, "include_logprobs": False, **options},
    )
    return b"".join(map(made.feed, updates)).split(b"\n\n")[:-1]


def test_chat_chunks_are_what_the_sdk_expects() -> None:
    *frames, done = chunks(ANSWER)
    assert done + b"\n\n" == DONE
    parsed = [ChatCompletionChunk.model_validate_json(f.removeprefix(b"data: "), strict=True) for f in frames]
    assert parsed[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in parsed) == "Hello!"
    assert [chunk.choices[0].finish_reason for chunk in parsed] == [None, None, None, None, "stop"]
    assert all("usage" not in (chunk.model_fields_set) for chunk in parsed)


def test_chat_usage_comes_last_when_asked_for() -> None:
    *frames, _ = chunks(ANSWER, include_usage=True)
    parsed = [ChatCompletionChunk.model_validate_json(f.removeprefix(b"data: ")) for f in frames]
    assert [chunk.usage is not None for chunk in parsed] == [False] * 5 + [True]
    assert parsed[-1].choices == []


def test_chat_logprobs() -> None:
    texts: list[Update] = [Text("a", 0, 1, token_ids=(7,), logprobs=(TokenLogprobs(-0.5),))]
    frames = chunks(texts, include_logprobs=True)
    parsed = ChatCompletionChunk.model_validate_json(frames[-1].removeprefix(b"data: "), strict=True)
    assert parsed.choices[0].logprobs is not None
    assert parsed.choices[0].logprobs.content is not None
    assert parsed.choices[0].logprobs.content[0].bytes == list(b"<7>")


@pytest.mark.parametrize(
    ("ended", "code"), [(ENDS[2], "cancelled"), (ENDS[4], "engine_failed"), (ENDS[5], "deadline_exceeded")]
)
def test_chat_has_no_word_for_other_ends_and_says_an_error(ended: Ended, code: str) -> None:
    error, done = chunks([ended])
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == code
    assert done + b"\n\n" == DONE
    with pytest.raises(HeadraceError) as raised:
        completion(RESPONSE, 1, "m", "", ended, None)
    assert raised.value.code == code


def test_chat_completion_is_what_the_sdk_expects() -> None:
    made = completion(RESPONSE, 1_700_000_000, "m", "Hello!", end(total=5, reason="length"), None)
    parsed = ChatCompletion.model_validate_json(msgspec.json.encode(made), strict=True)
    assert parsed.choices[0].message.content == "Hello!"
    assert parsed.choices[0].finish_reason == "length"
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == 10
