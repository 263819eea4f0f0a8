"""Completions objects and chunks, and several choices in one stream, against the official SDK's types."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from gateway.api.chat_events import DONE, ChatChunks
from gateway.api.choices import UsageTally
from gateway.api.completions_events import CompletionChunks, choice, completion, logprobs
from gateway.generation import Ended, Started, Text, Update
from gateway.live import Live
from schemas.ids import Fence, WorkerId
from schemas.reply import Finished, TokenLogprobs, Tokens, Usage
from schemas.reply import Started as StartedMessage
from tests.unit.gateway.test_events import ANSWER, RESPONSE, SPELLING, end
from tests.unit.gateway.test_live import AT, make
from tests.unit.gateway.tokenizers_built import byte_level

SAID = tuple(byte_level().encode("hello 你 two").ids)


def spell(token_id: int) -> str:
    return f"<{token_id}>"


def alive(ids: Sequence[int] = SAID, *, asked: int | None = None, reason: Any = "length") -> Live:
    """Ended, as its log tells it; with made-up log probabilities if asked."""
    live, _ = make(logprobs=asked)
    given = tuple(TokenLogprobs(-0.5, ((i, -0.5), (i + 1, -1.0))) for i in ids) if asked is not None else None
    live.feed(1, StartedMessage(attempt=1, worker=WorkerId("w")), AT)
    live.feed(2, Tokens(fence=Fence(1), offset=0, ids=tuple(ids), logprobs=given), AT)
    usage = Usage(prompt_tokens=3, completion_tokens=len(ids))
    total = len(ids)
    live.feed(
        3,
        Finished(fence=Fence(1), total=total, reason=reason, ids=tuple(ids), usage=usage, logprobs=given),
        AT,
    )
    return live


def parsed(frames: bytes) -> list[Completion]:
    *data, last = frames.split(b"\n\n")[:-1]
    assert last + b"\n\n" == DONE
    return [of_sdk(frame.removeprefix(b"data: ")) for frame in data]


def of_sdk(chunk: bytes) -> Completion:
    """Its type wants a ``finish_reason``, which a stream of OpenAI's has in the last chunk only."""
    shown = json.loads(chunk)
    running = [i for i, c in enumerate(shown["choices"]) if c["finish_reason"] is None]
    for i in running:
        shown["choices"][i]["finish_reason"] = "stop"
    made = Completion.model_validate(shown, strict=True)
    for i in running:
        made.choices[i].finish_reason = None  # type: ignore[assignment]
    return made


def chunks(first: Live, live: Live, index: int = 0, **options: Any) -> CompletionChunks:
    given = {
        "before": "",
        "spell": None,
        "tally": UsageTally(1, choices=1),
        "include_usage": False,
        "continuous_usage": False,
        "structure": "",
        **options,
    }
    return CompletionChunks(first, live, index, **given)


def all_of(live: Live, cuts: Sequence[int] = ()) -> list[Update]:
    """The updates of a reader that is given so many tokens at a time."""
    assert live.end is not None
    updates: list[Update] = [Started()]
    position = 0
    released = live.released(0, len(live.ids))
    for cut in (*cuts, len(live.ids)):
        begin = sum(released[:position])
        text = live.text[begin : begin + sum(released[position:cut])]
        known = tuple(live.log.logprobs[position:cut]) or None
        ids = tuple(live.ids[position:cut]) if known else ()
        updates.append(Text(text, position, cut, ids, known))
        position = cut
    return [*updates, live.end]


def test_a_completion_is_what_the_sdk_expects() -> None:
    live = alive()
    made = completion(live, [choice(live, 0, "so: ", None)], msgspec.UNSET)
    seen = Completion.model_validate_json(msgspec.json.encode(made), strict=True)
    assert seen.id == "cmpl-" + live.response_id.removeprefix("resp_")
    assert (seen.choices[0].text, seen.choices[0].finish_reason) == ("so: hello 你 two", "length")


def test_log_probabilities_stand_where_their_text_does() -> None:
    live = alive(asked=2)
    made = completion(live, [choice(live, 0, "é", spell)], msgspec.UNSET)
    seen = Completion.model_validate_json(msgspec.json.encode(made), strict=True).choices[0]
    assert seen.logprobs is not None
    assert seen.logprobs.tokens == [spell(i) for i in SAID]
    assert seen.logprobs.token_logprobs == [-0.5] * len(SAID)
    assert seen.logprobs.top_logprobs is not None
    assert seen.logprobs.top_logprobs[0] == {spell(SAID[0]): -0.5, spell(SAID[0] + 1): -1.0}
    assert seen.logprobs.text_offset is not None
    bounds = itertools.pairwise([*seen.logprobs.text_offset, len(seen.text)])
    own = [byte_level().decode([i]) for i in SAID]
    assert [seen.text[begin:end] for begin, end in bounds] == own


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2, 5)])
def test_chunks_join_to_the_whole_however_they_are_cut(cuts: tuple[int, ...]) -> None:
    live = alive(asked=1)
    whole = choice(live, 0, "before ", spell)
    stream = chunks(live, live, before="before ", spell=spell)
    seen = parsed(b"".join(map(stream.feed, all_of(live, cuts))))
    assert all("usage" not in chunk.model_fields_set for chunk in seen)
    assert "".join(chunk.choices[0].text for chunk in seen) == whole.text
    assert seen[0].choices[0].text.startswith("before h")
    assert [chunk.choices[0].finish_reason for chunk in seen] == [None] * (len(cuts) + 1) + ["length"]
    assert whole.logprobs is not None
    for name in ("text_offset", "tokens", "token_logprobs", "top_logprobs"):
        parts = [getattr(chunk.choices[0].logprobs, name) for chunk in seen[:-1]]
        assert [entry for part in parts for entry in part] == getattr(whole.logprobs, name)


def test_the_first_chunk_is_the_first_tokens() -> None:
    live = alive()
    assert chunks(live, live).feed(Started()) == b""


def test_no_text_at_all_is_a_completion_too() -> None:
    live = alive((), reason="stop")
    assert live.end is not None
    (seen,) = parsed(chunks(live, live, before="x").feed(live.end))
    assert (seen.choices[0].text, seen.choices[0].finish_reason) == ("x", "stop")


def test_usage_comes_last_once_all_choices_have_ended() -> None:
    lives = [alive(), alive(SAID[:2])]
    tally = UsageTally(2, choices=2)
    streams = [
        chunks(lives[0], live, i, tally=tally, include_usage=True, continuous_usage=True)
        for i, live in enumerate(lives)
    ]
    frames = [b"".join(map(streams[i].feed, all_of(lives[i]))) for i in (1, 0)]
    assert DONE not in frames[0]
    seen = parsed(b"".join(frames))
    assert [[c.index for c in chunk.choices] for chunk in seen] == [[1], [1], [0], [0], []]
    assert len({chunk.id for chunk in seen}) == 1
    usages = [chunk.usage for chunk in seen]
    assert all(usages)
    assert usages[0] is not None
    assert (usages[0].prompt_tokens, usages[0].completion_tokens) == (3, 2)
    assert usages[-1] is not None
    assert (usages[-1].prompt_tokens, usages[-1].completion_tokens) == (3, len(SAID) + 2)


def test_a_refused_structure_is_told_under_its_name() -> None:
    live = alive()
    refused = end("failed", 0, code="engine_rejected", message="no such schema")
    for stream in (
        chunks(live, live, structure="guided_json"),
        ChatChunks(
            RESPONSE, 1, "m", SPELLING, include_usage=False, include_logprobs=False, structure="guided_json"
        ),
    ):
        error, done = stream.feed(refused).split(b"\n\n")[:-1]
        told = json.loads(error.removeprefix(b"data: "))["error"]
        assert (told["code"], told["param"]) == ("engine_rejected", "guided_json")
        assert done + b"\n\n" == DONE


def test_chat_choices_share_a_stream() -> None:
    tally = UsageTally(2, choices=2)
    streams = [
        ChatChunks(
            RESPONSE,
            1,
            "m",
            SPELLING,
            include_usage=True,
            include_logprobs=False,
            index=i,
            tally=tally,
            so_far=lambda: Usage(prompt_tokens=5, completion_tokens=1),
        )
        for i in range(2)
    ]
    frames = b"".join(stream.feed(update) for update in ANSWER for stream in streams)
    *data, last = frames.split(b"\n\n")[:-1]
    assert last + b"\n\n" == DONE
    seen = [ChatCompletionChunk.model_validate_json(f.removeprefix(b"data: "), strict=True) for f in data]
    for i in range(2):
        own = [chunk.choices[0] for chunk in seen if chunk.choices and chunk.choices[0].index == i]
        assert own[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in own) == "Hello!"
        assert own[-1].finish_reason == "stop"
    assert all(chunk.usage is not None for chunk in seen)
    assert seen[-1].choices == []
    assert seen[-1].usage is not None
    assert (seen[-1].usage.prompt_tokens, seen[-1].usage.completion_tokens) == (5, 10)


def test_prompts_count_once_and_choices_each() -> None:
    tally = UsageTally(4, choices=2)
    used = [Usage(prompt_tokens=10 + i, cached_tokens=i, completion_tokens=2) for i in range(4)]
    ends = [Ended("completed", 2, usage=used[i], reasoning_tokens=i % 2) for i in range(4)]
    assert [tally.add(i, each) for i, each in enumerate(ends)] == [
        *[None] * 3,
        Usage(prompt_tokens=22, cached_tokens=2, completion_tokens=8),
    ]
    assert tally.reasoning_tokens == 2


def test_text_that_only_the_end_released_moves_no_token() -> None:
    shown = logprobs([1, 2], [TokenLogprobs(float("-inf")), TokenLogprobs(-1.0)], [3], 0, spell)
    assert shown.text_offset == [0, 3]
    assert shown.token_logprobs == [-9999.0, -1.0]
    assert isinstance(end(), Ended)
