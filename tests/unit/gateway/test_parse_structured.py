"""Structured output as each API writes it: what it becomes, and how each fault is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.abilities import check_abilities
from gateway.api.parse_completions import completion_generations, parse_completion
from gateway.api.parse_structured import MAX_DEPTH
from gateway.catalog import ModelCard
from gateway.generation import Generation
from schemas.errors import HeadraceError
from schemas.ids import ModelToken
from schemas.sampling import MAX_TEXT_BYTES, StructuredOutput
from tests.unit.gateway.test_parse_requests import CALLER, LIMITS, chat, hello, responses

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SCHEMA_TEXT = json.dumps(SCHEMA, separators=(",", ":"))
NAMED = {"name": "place", "schema": SCHEMA, "strict": True, "description": "where"}


def text_completion(**fields: Any) -> Generation:
    parsed = parse_completion({"prompt": "x", **fields})
    (generation,) = completion_generations(parsed, caller=CALLER, limits=LIMITS, received_unix_ms=1.0)
    return generation


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


FIELDS: list[tuple[dict[str, Any], StructuredOutput | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, StructuredOutput(json_object=True)),
    (
        {"response_format": {"type": "json_schema", "json_schema": NAMED}},
        StructuredOutput(json_schema=SCHEMA_TEXT),
    ),
    ({"structured_outputs": {"json": SCHEMA}}, StructuredOutput(json_schema=SCHEMA_TEXT)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, StructuredOutput(json_schema=SCHEMA_TEXT)),
    (
        {"structured_outputs": {"json_object": True, "regex": None, "disable_any_whitespace": False}},
        StructuredOutput(json_object=True),
    ),
    ({"structured_outputs": {"regex": "a+"}}, StructuredOutput(regex="a+")),
    ({"structured_outputs": {"choice": ["a", "b"]}}, StructuredOutput(choice=("a", "b"))),
    ({"structured_outputs": {"grammar": "root ::= 'a'"}}, StructuredOutput(grammar="root ::= 'a'")),
    ({"guided_json": SCHEMA}, StructuredOutput(json_schema=SCHEMA_TEXT)),
    ({"guided_regex": "a+"}, StructuredOutput(regex="a+")),
    ({"guided_choice": ["a"]}, StructuredOutput(choice=("a",))),
    ({"guided_grammar": "root ::= 'a'"}, StructuredOutput(grammar="root ::= 'a'")),
]


@pytest.mark.parametrize(("fields", "structured"), FIELDS)
def test_chat_and_completions(fields: dict[str, Any], structured: StructuredOutput | None) -> None:
    assert chat(**hello(**fields)).sampling.structured == structured
    assert text_completion(**fields).sampling.structured == structured


@pytest.mark.parametrize(
    ("given", "structured"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, StructuredOutput(json_object=True)),
        ({"type": "json_schema", **NAMED}, StructuredOutput(json_schema=SCHEMA_TEXT)),
    ],
)
def test_responses_repeat_what_they_follow(
    given: dict[str, Any], structured: StructuredOutput | None
) -> None:
    generation = responses(input="x", text={"format": given})
    assert generation.sampling.structured == structured
    assert json.loads(generation.echo)["format"] == given


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": {"type": "structural_tag"}}, "unsupported_parameter", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "invalid_request", "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "invalid_request",
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "name": "a b"}}},
            "invalid_value",
            "response_format.json_schema.name",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {**NAMED, "schema": nested(MAX_DEPTH + 1)},
                }
            },
            "invalid_value",
            "response_format.json_schema.schema",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {**NAMED, "schema": {"const": "x" * MAX_TEXT_BYTES}},
                }
            },
            "invalid_value",
            "response_format",
        ),
        ({"structured_outputs": {}}, "invalid_request", "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "invalid_request", "structured_outputs"),
        ({"structured_outputs": {"regex": ""}}, "invalid_value", "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "\x00"}}, "invalid_value", "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "invalid_value", "structured_outputs.choice"),
        ({"structured_outputs": {"json": "{"}}, "invalid_value", "structured_outputs.json"),
        ({"structured_outputs": {"json": "[1]"}}, "invalid_value", "structured_outputs.json"),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "unsupported_parameter",
            "structured_outputs.whitespace_pattern",
        ),
        ({"structured_outputs": {"regexp": "a"}}, "unknown_parameter", "structured_outputs.regexp"),
        ({"guided_json": "no json"}, "invalid_value", "guided_json"),
        ({"guided_decoding_backend": "xgrammar"}, "unsupported_parameter", "guided_decoding_backend"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "invalid_request", "guided_choice"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "invalid_request",
            "guided_regex",
        ),
    ],
)
def test_refused_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    for refused in (lambda: chat(**hello(**fields)), lambda: text_completion(**fields)):
        with pytest.raises(HeadraceError) as refusal:
            refused()
        assert (refusal.value.code, refusal.value.param) == (code, param)


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"type": "grammar"}, "unsupported_parameter", "text.format.type"),
        ({"type": "json_schema", "schema": {}}, "invalid_request", "text.format.name"),
        ({"type": "json_schema", "name": "n", "schema": True}, "invalid_value", "text.format.schema"),
        ({"type": "json_object", "schema": {}}, "unknown_parameter", "text.format.schema"),
        (
            {"type": "json_schema", "name": "n", "schema": {"const": "x" * MAX_TEXT_BYTES}},
            "invalid_value",
            "text.format.schema",
        ),
    ],
)
def test_responses_refuse_by_name(given: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(HeadraceError) as refusal:
        responses(input="x", text={"format": given})
    assert (refusal.value.code, refusal.value.param) == (code, param)


def test_the_deepest_schema_is_taken() -> None:
    assert chat(**hello(guided_json=nested(MAX_DEPTH))).sampling.structured is not None


def test_a_model_whose_workers_cannot_follow_it_refuses() -> None:
    card = ModelCard("m", ModelToken("m"), "", 100, 100, "m", 1, 1, 0, 0, 0)
    asked = chat(**hello(response_format={"type": "json_object"}))
    with pytest.raises(HeadraceError) as refusal:
        check_abilities(asked, card)
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "text.format")
    check_abilities(chat(**hello()), card)
