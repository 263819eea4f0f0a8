"""What tools and reasoning settings come to on a model that speaks in some manner."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jsonschema
import pytest
from msgspec import structs

from gateway.calling import forcing_schema, settle
from gateway.generation import ChatMessage, Generation, Tool
from gateway.output.manner import Manner
from schemas.errors import HeadraceError
from schemas.ids import TenantId
from schemas.job import OutputShape
from schemas.sampling import Sampling, StructuredOutput

HERMES = Manner(takes_tools=True, tool_format="hermes")
QWEN = dataclasses.replace(HERMES, thinking="tagged", switch="enable_thinking", thinks=True)
R1 = Manner(takes_tools=True, tool_format="hermes", thinking="tagged", thinks=True)
WEATHER = Tool(
    "weather",
    json.dumps(
        {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "day": {"$ref": "#/$defs/Day"}},
                "required": ["city"],
                "additionalProperties": False,
                "$defs": {"Day": {"type": "integer"}},
            },
        }
    ),
)
CLOCK = Tool("clock", json.dumps({"name": "clock"}))


def asked(**fields: Any) -> Generation:
    told = (ChatMessage("user", "?"),)
    return Generation(
        "chat", TenantId("t"), "", told, Sampling(max_tokens=10), tools=(WEATHER, CLOCK), **fields
    )


def settled(manner: Manner, form: str = "", *, can_force: bool = True, **fields: Any) -> Generation:
    return settle(asked(**fields), manner, form, can_force=can_force)


def test_calls_are_read_as_the_model_writes_them_or_the_operator_says() -> None:
    shown = (("weather", ("city",)), ("clock", ()))
    assert settled(HERMES).shape == OutputShape("hermes", shown, "", False)
    assert settled(HERMES, "mistral").shape == OutputShape("mistral", shown, "", False)
    assert settled(QWEN, one_call=True).shape == OutputShape("hermes", shown, "tagged", True)


def test_no_tools_no_shape_and_no_word_of_them_in_the_prompt() -> None:
    plain = settled(HERMES, tool_choice="none")
    assert (plain.tools, plain.shape) == ((), None)
    thinking = settled(QWEN, tool_choice="none")
    assert thinking.shape == OutputShape("", (), "tagged", False)


def test_a_forced_call_is_a_schema() -> None:
    forced = settled(HERMES, tool_choice="required")
    assert forced.sampling.structured == StructuredOutput(json_schema=forcing_schema(asked()))
    assert forced.shape is not None
    assert forced.shape.tool_format == "list"
    named = settled(HERMES, tool_choice="named", named_tool="weather")
    assert named.sampling.structured is not None
    assert json.loads(named.sampling.structured.json_schema or "") == WEATHER.schema()
    assert named.shape == OutputShape("arguments", (("weather", ("city",)),), "", False)


def test_who_is_forced_to_call_does_not_think_first() -> None:
    forced = settled(QWEN, tool_choice="required", template_options=(("enable_thinking", True),))
    assert forced.template_options == (("enable_thinking", False),)
    assert forced.shape is not None
    assert forced.shape.thinking == ""


@pytest.mark.parametrize(
    ("calls", "valid"),
    [
        ([{"name": "weather", "parameters": {"city": "Paris", "day": 1}}], True),
        ([{"name": "clock", "parameters": {}}, {"name": "clock", "parameters": {"any": "thing"}}], True),
        ([], False),
        ([{"name": "rain", "parameters": {}}], False),
        ([{"name": "weather", "parameters": {"city": "Paris", "day": "one"}}], False),
        ([{"name": "weather", "parameters": {}}], False),
        ({"name": "clock", "parameters": {}}, False),
    ],
)
def test_the_schema_admits_calls_of_the_tools_and_nothing_else(calls: Any, valid: bool) -> None:
    schema = json.loads(forcing_schema(asked(tool_choice="required")))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(calls) == valid


def test_definitions_of_one_name_and_two_meanings_are_refused() -> None:
    other = json.loads(WEATHER.json) | {"name": "other"}
    other["parameters"]["$defs"]["Day"] = {"type": "string"}
    both = structs.replace(asked(tool_choice="required"), tools=(WEATHER, Tool("other", json.dumps(other))))
    with pytest.raises(HeadraceError, match="'Day'"):
        forcing_schema(both)


def test_one_call_is_one() -> None:
    schema = json.loads(forcing_schema(asked(tool_choice="required", one_call=True)))
    call = {"name": "clock", "parameters": {}}
    assert jsonschema.Draft202012Validator(schema).is_valid([call])
    assert not jsonschema.Draft202012Validator(schema).is_valid([call, call])


@pytest.mark.parametrize(
    ("manner", "can_force", "fields", "param"),
    [
        (Manner(), True, {}, "tools"),
        (Manner(takes_tools=True), True, {}, "tools"),
        (HERMES, False, {"tool_choice": "required"}, "tool_choice"),
        (R1, True, {"tool_choice": "required"}, "tool_choice"),
        (HERMES, True, {"reasoning_effort": "high"}, "reasoning.effort"),
        (R1, True, {"reasoning_effort": "none"}, "reasoning.effort"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(
    manner: Manner, can_force: bool, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(HeadraceError) as refused:
        settled(manner, can_force=can_force, **fields)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)


def test_a_forced_call_and_a_format_contradict_each_other() -> None:
    sampling = Sampling(max_tokens=10, structured=StructuredOutput(json_schema="{}"))
    with pytest.raises(HeadraceError) as refused:
        settle(
            structs.replace(asked(tool_choice="required"), sampling=sampling),
            HERMES,
            "",
            can_force=True,
        )
    assert (refused.value.code, refused.value.param) == ("invalid_request", "tool_choice")


@pytest.mark.parametrize(
    ("manner", "effort", "options"),
    [
        (QWEN, "none", (("enable_thinking", False),)),
        (HERMES, "none", ()),
        (dataclasses.replace(HERMES, takes_effort=True), "low", (("reasoning_effort", "low"),)),
    ],
)
def test_effort_is_told_in_the_templates_words(manner: Manner, effort: str, options: Any) -> None:
    assert settled(manner, reasoning_effort=effort).template_options == options
