"""Completions requests, and vLLM's fields that chat completions take too."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.abilities import check_abilities
from gateway.api import parse_chat, parse_completions, parse_extras
from gateway.api.choices import siblings
from gateway.api.parse_completions import MAX_RESPONSES, completion_generations, parse_completion
from gateway.api.parse_extras import MAX_CHOICES
from gateway.catalog import ModelCard
from gateway.generation import ChatMessage, Generation
from gateway.jobs import request_digest
from schemas.errors import HeadraceError
from schemas.ids import ModelToken
from tests.unit.gateway.test_parse_requests import CALLER, LIMITS, chat, hello

CARD = ModelCard("m", ModelToken("m"), "", 100, 10, "m", 1, 1, 0, 0, 0)


def generations(prompt: Any = "x", **fields: Any) -> list[Generation]:
    parsed = parse_completion({"prompt": prompt, **fields})
    return completion_generations(parsed, caller=CALLER, limits=LIMITS, received_unix_ms=1.0)


def one(prompt: Any = "x", **fields: Any) -> Generation:
    (generation,) = generations(prompt, **fields)
    return generation


class TestPrompts:
    def test_a_text(self) -> None:
        generation = one("to be")
        assert generation.api == "completions"
        assert generation.messages == (ChatMessage("user", "to be"),)
        assert generation.prompt_ids == ()

    def test_token_ids(self) -> None:
        generation = one([1, 2, 3])
        assert (generation.prompt_ids, generation.messages) == ((1, 2, 3), ())

    def test_several(self) -> None:
        assert [g.messages[0].content for g in generations(["a", "b"])] == ["a", "b"]
        assert [g.prompt_ids for g in generations([[1], [2, 3]])] == [(1,), (2, 3)]

    @pytest.mark.parametrize("prompt", [["a", 1], [[1], "a"], [1, [2]], [1, "a"]])
    def test_one_kind_at_a_time(self, prompt: Any) -> None:
        with pytest.raises(HeadraceError) as refusal:
            generations(prompt)
        assert (refusal.value.code, refusal.value.param) == ("invalid_value", "prompt")

    def test_an_id_that_the_model_does_not_have(self) -> None:
        check_abilities(one([9]), CARD)
        with pytest.raises(HeadraceError) as refusal:
            check_abilities(one([1, 10]), CARD)
        assert (refusal.value.code, refusal.value.param) == ("invalid_token_id", "prompt")


def test_openais_default_of_tokens_is_a_limit_like_any_other() -> None:
    assert (one().sampling.max_tokens, one().max_tokens_given) == (16, True)
    assert one(max_tokens=99).sampling.max_tokens == 99


def test_all_that_shapes_the_answer_arrives() -> None:
    generation = one(
        logprobs=3,
        stop=["a"],
        seed=4,
        logit_bias={"5": 1},
        bad_words=["no"],
        allowed_token_ids=[5, 6],
        add_special_tokens=False,
        ignore_eos=True,
    )
    sampling = generation.sampling
    assert (sampling.logprobs, sampling.seed, sampling.logit_bias) == (3, 4, {5: 1.0})
    assert (sampling.bad_words, sampling.allowed_token_ids) == (("no",), (5, 6))
    assert (generation.stop, generation.special_tokens, sampling.ignore_eos) == (("a",), False, True)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": None}, "invalid_value", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": ["a", ""]}, "invalid_value", "prompt"),
        ({"prompt": [[1], []]}, "invalid_value", "prompt"),
        ({"prompt": [-1]}, "invalid_value", "prompt[0]"),
        ({"prompt": [1.5]}, "invalid_value", "prompt[0]"),
        ({"prompt": ["a"] * (MAX_RESPONSES + 1)}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * (MAX_RESPONSES // 2 + 1), "n": 2}, "invalid_value", "prompt"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": MAX_CHOICES + 1}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"logprobs": True}, "invalid_value", "logprobs"),
        ({"logprobs": 21}, "invalid_value", "logprobs"),
        ({"echo": True, "logprobs": 0}, "unsupported_parameter", "echo"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"best_of": 3}, "unsupported_parameter", "best_of"),
        ({"prompt_logprobs": 1}, "unsupported_parameter", "prompt_logprobs"),
        ({"messages": []}, "unknown_parameter", "messages"),
        ({"stream_options": {}}, "invalid_request", "stream_options"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "invalid_request",
            "stream_options.continuous_usage_stats",
        ),
        ({"bad_words": [""]}, "invalid_value", "bad_words[0]"),
        ({"allowed_token_ids": []}, "invalid_value", "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "invalid_token_id", "allowed_token_ids[0]"),
    ],
)
def test_refused_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(HeadraceError) as refusal:
        generations(**fields)
    assert (refusal.value.code, refusal.value.param) == (code, param)


def test_the_prompt_is_needed() -> None:
    with pytest.raises(HeadraceError) as refusal:
        parse_completion({})
    assert (refusal.value.code, refusal.value.param) == ("invalid_request", "prompt")


@pytest.mark.parametrize("name", sorted(parse_extras.UNSUPPORTED))
def test_what_vllm_has_and_is_not_served_is_refused_by_its_name(name: str) -> None:
    for refused in (lambda: chat(**hello(**{name: "x"})), lambda: one(**{name: "x"})):
        with pytest.raises(HeadraceError) as refusal:
            refused()
        assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", name)


def test_what_asks_for_what_is_done_anyway_is_taken() -> None:
    assert one(**parse_extras.NEUTRAL, best_of=1, suffix="") == one()
    assert one(n=2, best_of=2) == one(n=2)
    assert chat(**hello(**parse_chat.NEUTRAL)) == chat(**hello())
    assert set(parse_extras.NEUTRAL) <= set(parse_completions.UNSUPPORTED)
    assert set(parse_chat.NEUTRAL) <= set(parse_chat.UNSUPPORTED)
    with pytest.raises(HeadraceError):
        one(priority=False)


class TestTemplate:
    def test_options(self) -> None:
        options = {"enable_thinking": False, "style": "short", "depth": 2}
        assert chat(**hello(chat_template_kwargs=options)).template_options == tuple(options.items())

    def test_who_goes_on(self) -> None:
        assert chat(**hello()).speaker == "assistant"
        assert chat(**hello(add_generation_prompt=False)).speaker == "nobody"
        going_on = hello(add_generation_prompt=False, continue_final_message=True)
        assert chat(**going_on).speaker == "last"

    @pytest.mark.parametrize(
        ("fields", "code", "param"),
        [
            ({"chat_template": "{{ x }}"}, "unsupported_parameter", "chat_template"),
            ({"continue_final_message": True}, "invalid_request", "continue_final_message"),
            (
                {"chat_template_kwargs": {"messages": "x"}},
                "unsupported_parameter",
                "chat_template_kwargs.messages",
            ),
            ({"chat_template_kwargs": {"tools": 1}}, "unsupported_parameter", "chat_template_kwargs.tools"),
            ({"chat_template_kwargs": {"a": []}}, "invalid_value", "chat_template_kwargs"),
            ({"chat_template_kwargs": {"a": 1 << 31}}, "invalid_value", "chat_template_kwargs"),
            ({"chat_template_kwargs": {"a-b": 1}}, "invalid_value", "chat_template_kwargs"),
            ({"chat_template_kwargs": {"a": "x" * 257}}, "invalid_value", "chat_template_kwargs"),
        ],
    )
    def test_refused_by_name(self, fields: dict[str, Any], code: str, param: str) -> None:
        with pytest.raises(HeadraceError) as refusal:
            chat(**hello(**fields))
        assert refusal.value.code == code
        assert (refusal.value.param or "").startswith(param)


class TestSiblings:
    def test_seeds_follow_each_other(self) -> None:
        assert [g.sampling.seed for g in siblings([one(seed=7)], 3)] == [7, 8, 9]
        assert [g.sampling.seed for g in siblings([one()], 2)] == [None, None]

    def test_beyond_the_largest_seed_comes_the_smallest(self) -> None:
        largest = (1 << 63) - 1
        assert [g.sampling.seed for g in siblings([one(seed=largest)], 2)] == [largest, -(1 << 63)]

    def test_a_repeated_request_with_another_number_is_another_request(self) -> None:
        digests = {request_digest(g) for count in (1, 2, 3) for g in siblings([one()], count)}
        assert len(digests) == 6
