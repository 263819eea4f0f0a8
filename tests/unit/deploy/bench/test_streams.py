"""What events mean: text, usage, and the ends there are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.bench.streams import CompletionsStream, End, ResponsesStream, Tokens, refusal


def event(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def delta(**fields: Any) -> bytes:
    return event(id="chatcmpl-1", choices=[{"index": 0, "delta": fields, "finish_reason": None}])


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


def test_a_chat_completion() -> None:
    stream = CompletionsStream(keep_text=True)
    assert not stream.feed(delta(role="assistant", content=""))
    assert stream.feed(delta(content="Hello "))
    assert stream.feed(delta(content="you"))
    assert not stream.feed(event(choices=[{"delta": {}, "finish_reason": "stop"}]))
    assert not stream.feed(event(choices=[], usage=USAGE))
    assert stream.end is None
    assert not stream.feed(b"[DONE]")
    assert stream.end == stream.closed() == End("completed")
    assert stream.tokens == Tokens(7, 4, 3)
    assert stream.text == "Hello you"


@pytest.mark.parametrize(
    "said",
    [
        delta(reasoning_content="hm"),
        delta(reasoning="hm"),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}]),
        event(choices=[{"index": 0, "text": "plain completion"}]),
    ],
)
def test_all_that_a_model_makes_counts_as_text(said: bytes) -> None:
    assert CompletionsStream().feed(said)


@pytest.mark.parametrize(
    "empty", [delta(content=None), delta(tool_calls=[]), delta(tool_calls=None), delta()]
)
def test_an_empty_delta_is_no_text(empty: bytes) -> None:
    assert not CompletionsStream().feed(empty)


def test_a_server_that_says_no_done_completes_by_its_finish_reason() -> None:
    stream = CompletionsStream()
    stream.feed(event(choices=[{"text": "a", "finish_reason": "length"}]))
    assert stream.closed() == End("completed")


def test_a_stream_that_stops_in_the_middle_is_broken() -> None:
    stream = CompletionsStream()
    stream.feed(delta(content="Hello"))
    assert stream.closed() == End("broken", "ended without a finish reason")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"message": "no", "type": "server_error", "code": "poison"}, "poison"),
        ({"message": "no", "type": "InternalServerError", "code": 500}, "500"),
        ({"message": "no", "type": "server_error", "code": None}, "server_error"),
        ("it broke", "it broke"),
    ],
)
def test_an_error_within_a_stream_is_a_failure(error: object, reason: str) -> None:
    stream = CompletionsStream()
    stream.feed(event(error=error))
    stream.feed(b"[DONE]")
    assert stream.end == End("failed", reason)


def response(kind: str, **fields: Any) -> bytes:
    return event(type=kind, sequence_number=1, response={"id": "resp_1", **fields})


RESPONSES_USAGE = {"input_tokens": 7, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}


@pytest.mark.parametrize(
    ("last", "end"),
    [
        (response("response.completed", usage=RESPONSES_USAGE), End("completed")),
        (
            response(
                "response.incomplete",
                usage=RESPONSES_USAGE,
                incomplete_details={"reason": "max_output_tokens"},
            ),
            End("completed"),
        ),
        (
            response(
                "response.incomplete", usage=RESPONSES_USAGE, incomplete_details={"reason": "cancelled"}
            ),
            End("failed", "cancelled"),
        ),
        (
            response("response.failed", usage=RESPONSES_USAGE, error={"code": "poison", "message": "no"}),
            End("failed", "poison"),
        ),
    ],
)
def test_a_response(last: bytes, end: End) -> None:
    stream = ResponsesStream()
    assert not stream.feed(response("response.created"))
    assert stream.response_id == "resp_1"
    assert not stream.feed(event(type="response.output_item.added", item={"type": "message"}))
    assert stream.feed(event(type="response.output_text.delta", delta="Hello"))
    assert stream.feed(event(type="response.reasoning_text.delta", delta="hm"))
    assert not stream.feed(event(type="session.going_away", time_left_ms=3))
    assert stream.end is None
    assert not stream.feed(last)
    assert stream.end == end
    assert stream.tokens == Tokens(7, 4, 3)


def test_a_refusal_on_a_websocket_and_a_failure_behind_it() -> None:
    error = {"type": "error", "status": 429, "error": {"code": "queue_full", "message": "wait"}}
    before, after = ResponsesStream(), ResponsesStream()
    before.feed(event(**error))
    assert before.end == End("refused", "429 queue_full")
    after.feed(response("response.created"))
    after.feed(event(**error))
    assert after.end == End("failed", "queue_full")


def test_a_response_without_a_terminal_event_is_broken() -> None:
    assert ResponsesStream().closed() == End("broken", "ended without a terminal event")


@pytest.mark.parametrize("stream", [CompletionsStream(), ResponsesStream()])
def test_an_event_that_cannot_be_read_is_a_failure(stream: CompletionsStream | ResponsesStream) -> None:
    assert not stream.feed(b"{")
    assert stream.end == End("failed", "unreadable event")


@pytest.mark.parametrize(
    ("status", "body", "end"),
    [
        (
            429,
            event(error={"code": "rate_limit_exceeded", "type": "x"}),
            End("refused", "429 rate_limit_exceeded"),
        ),
        (400, event(object="error", message="no", type="BadRequestError", code=400), End("refused", "400")),
        (404, event(detail="Not Found"), End("refused", "404")),
        (502, b"<html>Bad Gateway</html>", End("refused", "502")),
        (503, event(error="overloaded"), End("refused", "503")),
        (200, event(choices=[]), End("failed", "not an event stream")),
    ],
)
def test_a_refusal_over_http(status: int, body: bytes, end: End) -> None:
    assert refusal(status, body) == end
