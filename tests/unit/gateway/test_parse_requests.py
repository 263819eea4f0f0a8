"""Requests of each API: what they become, and how each fault is named."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.api.parse_chat import chat_generation, parse_chat, parse_question, question_generation
from gateway.api.parse_json import decode_object
from gateway.api.parse_responses import parse_create, to_generation
from gateway.caller import Caller
from gateway.generation import ChatMessage, Generation
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.ids import TenantId, new_response_id

CALLER = Caller(TenantId("t"))
LIMITS = Gateway()


def responses(**fields: Any) -> Generation:
    create = parse_create(decode_object(json.dumps(fields)))
    return to_generation(create, caller=CALLER, limits=LIMITS, received_unix_ms=1.0)


def chat(**fields: Any) -> Generation:
    parsed = parse_chat(decode_object(json.dumps(fields)))
    return chat_generation(parsed, caller=CALLER, limits=LIMITS, received_unix_ms=1.0)


def nested(depth: int) -> list[Any]:
    """Deep enough for Python's own ``repr`` to give up."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def hello(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], **fields}


class TestJson:
    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"{", "invalid_json"),
            (b"", "invalid_json"),
            (b'{"a":1} x', "invalid_json"),
            (b'{"a":NaN}', "invalid_json"),
            (b'{"a":1e999}', "invalid_json"),
            (b'{"a":"\\ud800"}', "invalid_json"),
            (b'{"a":"\\udc00 x"}', "invalid_json"),
            (b"[" * 100_000, "invalid_json"),
            (b'{"a":' * 100_000, "invalid_json"),
            (b"[1]", "invalid_request"),
            (b"null", "invalid_request"),
            (b'"text"', "invalid_request"),
            (b"\xff\xfe", "invalid_encoding"),
            (b'{"a":"\xed\xa0\x80"}', "invalid_encoding"),
        ],
    )
    def test_refused(self, data: bytes, code: str) -> None:
        with pytest.raises(HeadraceError) as refusal:
            decode_object(data)
        assert refusal.value.code == code
        assert "`" not in refusal.value.message

    def test_the_last_of_duplicate_keys_counts(self) -> None:
        assert decode_object(b'{"a":1,"a":2}') == {"a": 2}

    def test_text_and_bytes_are_alike(self) -> None:
        assert decode_object('{"a":"\U0001f600"}') == decode_object('{"a":"\U0001f600"}'.encode())


class TestResponses:
    def test_text_input(self) -> None:
        generation = responses(input="hello", instructions="be brief", model="m", temperature=0)
        assert generation.messages == (ChatMessage("system", "be brief"), ChatMessage("user", "hello"))
        assert generation.api == "responses"
        assert generation.model == "m"
        assert generation.sampling.temperature == 0
        assert (generation.sampling.max_tokens, generation.max_tokens_given) == (
            LIMITS.default_max_tokens,
            False,
        )

    def test_items_as_an_sdk_sends_an_earlier_output_back(self) -> None:
        generation = responses(
            input=[
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}],
                },
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "phase": None,
                    "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}],
                },
                {"type": "message", "role": "developer", "content": "d"},
            ]
        )
        assert [(m.role, m.content) for m in generation.messages] == [
            ("user", "ab"),
            ("assistant", "c"),
            ("developer", "d"),
        ]

    def test_all_that_shapes_the_answer_arrives(self) -> None:
        generation = responses(
            input="x",
            max_output_tokens=7,
            min_tokens=2,
            temperature=0.5,
            top_p=0.9,
            top_k=5,
            min_p=0.1,
            presence_penalty=1,
            frequency_penalty=-1,
            repetition_penalty=1.1,
            seed=-3,
            stop=["a", "b"],
            stop_token_ids=[3],
            logit_bias={"12": -100},
            ignore_eos=True,
            top_logprobs=2,
        )
        sampling = generation.sampling
        assert msgspec.to_builtins(sampling) == {
            "max_tokens": 7,
            "min_tokens": 2,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "presence_penalty": 1.0,
            "frequency_penalty": -1.0,
            "repetition_penalty": 1.1,
            "seed": -3,
            "logprobs": 2,
            "logit_bias": {12: -100.0},
            "stop_token_ids": (3,),
            "ignore_eos": True,
        }
        assert msgspec.convert(msgspec.to_builtins(sampling), type(sampling)) == sampling
        assert generation.stop == ("a", "b")
        assert generation.max_tokens_given

    def test_the_job_carries_what_the_response_object_repeats(self) -> None:
        generation = responses(input="x", metadata={"k": "v"}, user="u", store=False, temperature=0)
        echo = json.loads(generation.echo)
        assert (echo["metadata"], echo["user"], echo["store"], echo["temperature"]) == (
            {"k": "v"},
            "u",
            False,
            0,
        )
        assert not generation.store

    @pytest.mark.parametrize("conversation", ["c", {"id": "c"}])
    def test_conversation_by_name_or_object(self, conversation: object) -> None:
        assert responses(input="x", conversation=conversation).conversation == "c"

    def test_null_is_the_same_as_absent(self) -> None:
        fields = dict.fromkeys(
            ("temperature", "reasoning", "tools", "prompt", "text", "conversation", "include")
        )
        assert responses(input="x", **fields) == responses(input="x")

    def test_what_an_sdk_sends_without_meaning_anything_is_taken(self) -> None:
        generation = responses(
            input="x",
            stream=True,
            tools=[],
            tool_choice="auto",
            parallel_tool_calls=False,
            truncation="disabled",
            text={"format": {"type": "text"}, "verbosity": None},
            service_tier="auto",
            background=False,
            include=[],
            stream_options={"include_obfuscation": False},
            top_k=-1,
        )
        assert generation.sampling.top_k == 0

    @pytest.mark.parametrize(
        ("fields", "code", "param"),
        [
            ({}, "invalid_request", "input"),
            ({"input": ""}, "invalid_value", "input"),
            ({"input": []}, "invalid_value", "input"),
            ({"input": "", "instructions": "x"}, "invalid_value", "input"),
            ({"input": 7}, "invalid_value", "input"),
            ({"input": [{"role": "wizard", "content": "x"}]}, "invalid_value", "input[0].role"),
            ({"input": [{"role": "user", "contents": "x"}]}, "unknown_parameter", "input[0].contents"),
            ({"input": [{"role": "user"}]}, "invalid_request", "input[0].content"),
            ({"input": ["x"]}, "invalid_value", "input[0]"),
            (
                {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
                "unsupported_parameter",
                "input[0].content[0].type",
            ),
            ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_parameter", "input[0].type"),
            (
                {"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]},
                "invalid_value",
                "input[0].content[0].text",
            ),
            ({"input": "x", "temprature": 1}, "unknown_parameter", "temprature"),
            ({"input": "x", "temperature": "hot"}, "invalid_value", "temperature"),
            ({"input": "x", "temperature": 2.1}, "invalid_value", "temperature"),
            ({"input": "x", "temperature": True}, "invalid_value", "temperature"),
            ({"input": "x", "top_p": 0}, "invalid_value", "top_p"),
            ({"input": "x", "max_output_tokens": 4.0}, "invalid_value", "max_output_tokens"),
            ({"input": "x", "max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
            ({"input": "x", "max_output_tokens": 1, "min_tokens": 2}, "invalid_value", "min_tokens"),
            ({"input": "x", "seed": 1 << 64}, "invalid_value", "seed"),
            ({"input": "x", "stop": [""]}, "invalid_value", "stop[0]"),
            ({"input": "x", "stop": ["a"] * 17}, "invalid_value", "stop"),
            ({"input": "x", "stop_token_ids": [-1]}, "invalid_token_id", "stop_token_ids[0]"),
            ({"input": "x", "logit_bias": {"-1": 1}}, "invalid_token_id", "logit_bias"),
            ({"input": "x", "logit_bias": {"x": 1}}, "invalid_token_id", "logit_bias"),
            ({"input": "x", "logit_bias": {"99999999999": 1}}, "invalid_token_id", "logit_bias"),
            ({"input": "x", "logit_bias": {"1": 101}}, "invalid_value", "logit_bias"),
            ({"input": "x", "metadata": {"k": 1}}, "invalid_value", "metadata"),
            ({"input": "x", "metadata": {"k" * 65: "v"}}, "invalid_value", "metadata"),
            ({"input": "x", "tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
            ({"input": "x", "tool_choice": "required"}, "invalid_request", "tool_choice"),
            ({"input": "x", "reasoning": {"summary": "auto"}}, "unsupported_parameter", "reasoning.summary"),
            ({"input": "x", "background": True}, "unsupported_parameter", "background"),
            ({"input": "x", "generate": False}, "unsupported_parameter", "generate"),
            ({"input": "x", "truncation": "auto"}, "unsupported_parameter", "truncation"),
            (
                {"input": "x", "conversation": "c", "truncation": "disabled"},
                "unsupported_parameter",
                "truncation",
            ),
            (
                {"input": "x", "previous_response_id": new_response_id(), "truncation": "disabled"},
                "unsupported_parameter",
                "truncation",
            ),
            ({"input": [{"type": nested(500), "content": "x"}]}, "invalid_value", "input[0].type"),
            (
                {"input": [{"role": "user", "content": [{"type": nested(500), "text": "x"}]}]},
                "invalid_value",
                "input[0].content[0].type",
            ),
            ({"input": "x", "service_tier": "scale"}, "unsupported_parameter", "service_tier"),
            ({"input": "x", "include": ["file_search_call.results"]}, "unsupported_parameter", "include"),
            ({"input": "x", "text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity"),
            ({"input": "x", "text": {"form": {}}}, "unknown_parameter", "text.form"),
            ({"input": "x", "conversation": ""}, "invalid_value", "conversation"),
            ({"input": "x", "conversation": {"name": "c"}}, "unknown_parameter", "conversation.name"),
            (
                {"input": "x", "previous_response_id": "resp_x"},
                "previous_response_not_found",
                "previous_response_id",
            ),
        ],
    )
    def test_refused_by_name(self, fields: dict[str, Any], code: str, param: str) -> None:
        with pytest.raises(HeadraceError) as refusal:
            responses(**fields)
        assert (refusal.value.code, refusal.value.param) == (code, param)
        assert len(refusal.value.message) > 10

    def test_truncation_is_taken_where_it_says_what_is_done(self) -> None:
        assert responses(input="x", conversation="c", truncation="auto").conversation == "c"
        assert responses(input="x", truncation="disabled") == responses(input="x")

    def test_an_unknown_field_gets_the_closest_known_one(self) -> None:
        with pytest.raises(HeadraceError, match="Did you mean 'temperature'"):
            responses(input="x", temprature=1)

    def test_a_conversation_has_one_past(self) -> None:
        with pytest.raises(HeadraceError, match="not both"):
            responses(input="x", conversation="c", previous_response_id=new_response_id())


class TestChat:
    def test_messages_with_text_parts(self) -> None:
        generation = chat(
            messages=[
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "refusal": None, "annotations": [], "tool_calls": None},
                {"role": "user", "content": "d"},
            ],
            max_tokens=5,
            stop="END",
        )
        assert [(m.role, m.content) for m in generation.messages] == [
            ("system", "s"),
            ("user", "ab"),
            ("assistant", "c"),
            ("user", "d"),
        ]
        assert generation.sampling.max_tokens == 5
        assert generation.stop == ("END",)
        assert generation.conversation is None

    def test_both_names_of_the_limit(self) -> None:
        assert chat(**hello(max_completion_tokens=5)).sampling.max_tokens == 5
        assert chat(**hello(max_completion_tokens=5, max_tokens=5)).sampling.max_tokens == 5
        with pytest.raises(HeadraceError, match="not both"):
            chat(**hello(max_completion_tokens=5, max_tokens=6))

    def test_labels_and_what_asks_for_nothing_are_taken(self) -> None:
        taken = {
            "metadata": {"k": "v"},
            "user": "u",
            "safety_identifier": "s",
            "prompt_cache_key": "p",
            "parallel_tool_calls": False,
            "store": False,
        }
        assert chat(**hello(**taken)).messages == chat(**hello()).messages

    def test_logprobs(self) -> None:
        assert chat(**hello()).sampling.logprobs is None
        assert chat(**hello(logprobs=True)).sampling.logprobs == 0
        assert chat(**hello(logprobs=True, top_logprobs=3)).sampling.logprobs == 3

    @pytest.mark.parametrize(
        ("fields", "code", "param"),
        [
            ({}, "invalid_request", "messages"),
            ({"messages": []}, "invalid_value", "messages"),
            ({"messages": "hello"}, "invalid_value", "messages"),
            ({"messages": ["hello"]}, "invalid_value", "messages[0]"),
            ({"messages": [{"role": "user", "content": ""}]}, "invalid_value", "messages"),
            ({"messages": [{"role": "user", "content": None}]}, "invalid_value", "messages[0].content"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_request", "messages[0].tool_call_id"),
            (
                {"messages": [{"role": "user", "content": "x", "name": "n"}]},
                "unsupported_parameter",
                "messages[0].name",
            ),
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
                "unsupported_parameter",
                "messages[0].content[0].type",
            ),
            (hello(store=True), "unsupported_parameter", "store"),
            (hello(tools=[{"type": "function"}]), "invalid_value", "tools[0]"),
            (hello(functions=[{"name": "f"}]), "unsupported_parameter", "functions"),
            (hello(max_output_tokens=4), "unknown_parameter", "max_output_tokens"),
            (hello(max_tokens="4"), "invalid_value", "max_tokens"),
            (hello(top_logprobs=2), "invalid_request", "top_logprobs"),
            (hello(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
            (hello(stream_options={"include_usage": True}), "invalid_request", "stream_options"),
        ],
    )
    def test_refused_by_name(self, fields: dict[str, Any], code: str, param: str) -> None:
        with pytest.raises(HeadraceError) as refusal:
            chat(**fields)
        assert (refusal.value.code, refusal.value.param) == (code, param)


class TestSimpleChat:
    def test_the_user_names_the_conversation(self) -> None:
        question = parse_question({"user_id": "u1", "query": "hello"})
        generation = question_generation(question, caller=CALLER, limits=LIMITS, received_unix_ms=1.0)
        assert generation.messages == (ChatMessage("user", "hello"),)
        assert generation.conversation == "user/u1"

    @pytest.mark.parametrize(
        ("fields", "code", "param"),
        [
            ({"query": "x"}, "invalid_request", "user_id"),
            ({"user_id": "u"}, "invalid_request", "query"),
            ({"user_id": 1, "query": "x"}, "invalid_value", "user_id"),
            ({"user_id": "u", "query": ""}, "invalid_value", "query"),
            ({"user_id": "u", "query": "x", "stream": True}, "unknown_parameter", "stream"),
        ],
    )
    def test_refused_by_name(self, fields: dict[str, Any], code: str, param: str) -> None:
        with pytest.raises(HeadraceError) as refusal:
            parse_question(fields)
        assert (refusal.value.code, refusal.value.param) == (code, param)
