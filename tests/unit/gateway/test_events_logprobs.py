"""Log probabilities as JSON: spelled once a model, encoded once a response, and away from the event loop."""

from __future__ import annotations

import math
import threading

import msgspec
import pytest
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob
from pydantic import TypeAdapter

from gateway.api.responses_events import ItemEvent, PartEvent, ResponseEvent, ResponseEvents, TextDone
from gateway.api.responses_object import Echo, Head, OutputText
from gateway.api.token_logprobs import MANY, MAX_MODELS, NONE, Spelling, Spellings, off_loop, show
from gateway.generation import Ended, Started, Text, Update
from gateway.text import Detokenizer
from schemas.ids import ModelToken, new_response_id
from schemas.reply import TokenLogprobs
from tests.unit.gateway.test_live import make
from tests.unit.gateway.tokenizers_built import byte_fallback, byte_level

SHOWN = TypeAdapter(list[ChatCompletionTokenLogprob])


def test_what_is_shown_is_what_the_sdk_expects() -> None:
    spelling = Spelling(raw=lambda i: [b'"\\', b"\xe4\xbd", b"\n"][i], known={})
    top = ((1, float("-inf")), (2, -1e-07))
    given = [TokenLogprobs(-0.5, top), TokenLogprobs(math.nan), TokenLogprobs(0.0)]
    seen = SHOWN.validate_json(bytes(show([0, 1, 2], given, spelling)), strict=True)
    assert [(p.token, p.logprob, p.bytes) for p in seen] == [
        ('"\\', -0.5, [34, 92]),
        ("�", -9999.0, [0xE4, 0xBD]),
        ("\n", 0.0, [10]),
    ]
    assert [(p.token, p.logprob) for p in seen[0].top_logprobs] == [("�", -9999.0), ("\n", -1e-07)]
    assert show([0], None, spelling) is NONE


def test_a_space_before_a_word_is_part_of_its_token() -> None:
    """Text begins without it, but a token by itself does not begin the text."""
    tokenizer = byte_fallback()
    hello = tokenizer.token_to_id("▁Hello")
    assert hello is not None
    shown = show([hello], [TokenLogprobs(-1.0)], Spelling(Detokenizer(tokenizer).token_bytes, {}))
    (seen,) = SHOWN.validate_json(bytes(shown))
    assert (seen.token, seen.bytes) == (" Hello", list(b" Hello"))


def test_a_token_is_spelled_once_for_all_responses_of_a_model() -> None:
    spellings = Spellings()
    first, second = make(logprobs=1)[0], make(logprobs=1)[0]
    spellings.of(first).of(70)
    assert spellings.of(second).known.keys() == {70}
    assert spellings.of(first).known is spellings.of(second).known
    for n in range(MAX_MODELS):
        other, _ = make()
        other.job = msgspec.structs.replace(other.job, model=ModelToken(f"m{n}"))
        spellings.of(other)
    assert spellings.of(first).known == {}


def test_the_events_of_the_end_share_one_encoded_list() -> None:
    head = Head(
        id=new_response_id(),
        created_unix_ms=1,
        model="m",
        conversation=None,
        previous_response_id=None,
        echo=Echo(),
    )
    encoded = msgspec.Raw(b'["a big one"]')
    events = ResponseEvents(head, lambda: OutputText("x", logprobs=encoded), Spelling(lambda i: b"x", {}))
    text, part, item, last = events.feed(Ended("completed", 1))[-4:]
    assert isinstance(text, TextDone)
    assert isinstance(part, PartEvent)
    assert isinstance(item, ItemEvent)
    assert isinstance(last, ResponseEvent)
    lists = [text.logprobs, part.part.logprobs, item.item.content[0].logprobs]
    lists.append(last.response.output[0].content[0].logprobs)
    assert all(each is encoded for each in lists)
    assert bytes(encoded) in msgspec.json.encode(last)


@pytest.mark.parametrize(
    ("asked", "updates", "away"),
    [
        (None, [Started(), Text("x", 0, 5000), Ended("completed", 5000)], False),
        (1, [Text("x", 0, 1, token_ids=(1,))], False),
        (1, [Text("x", 0, MANY // 2, token_ids=(1,) * (MANY // 2))], True),
        (19, [Ended("completed", MANY // 20)], True),
        (19, [Ended("completed", MANY // 20 - 1)], False),
    ],
)
async def test_many_are_encoded_away_from_the_event_loop(
    asked: int | None, updates: list[Update], away: bool
) -> None:
    live, _ = make(logprobs=asked)
    assert live.token_bytes(70) == Detokenizer(byte_level()).token_bytes(70)
    thread = await off_loop(live, updates, threading.get_ident)
    assert (thread != threading.get_ident()) == away
