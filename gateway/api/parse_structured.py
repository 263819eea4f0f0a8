"""Structured output as each API asks for it, to the one ``StructuredOutput`` that engines take.

OpenAI's ``response_format`` and ``text.format``, vLLM's ``structured_outputs`` and its older ``guided_*``.
What is checked here is what needs no grammar compiler; the engine refuses the rest (``engine_rejected``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.api.parse_json import JsonObject
from gateway.api.responses_object import JsonObjectFormat, JsonSchemaFormat, OutputFormat, TextFormat
from schemas.errors import HeadraceError
from schemas.sampling import MAX_TEXT_BYTES, StructuredOutput

MAX_DEPTH = 64  # of nested objects and lists in a schema
MAX_CHOICES = 1024
FORMATS = ("text", "json_object", "json_schema")

Text = Annotated[str, Meta(min_length=1)]
Choices = Annotated[list[Text], Meta(min_length=1, max_length=MAX_CHOICES)]
Schema = dict[str, Any]  # a JSON Schema: its keys are the schema language's, not ours

_encoder = msgspec.msgpack.Encoder()


class NamedSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``strict`` or not, the schema is followed."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
    schema: Schema
    description: str | None = None
    strict: bool | None = None


class ChatTextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    pass


class ChatJsonFormat(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"
):
    pass


class ChatSchemaFormat(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"
):
    json_schema: NamedSchema


ResponseFormat = ChatTextFormat | ChatJsonFormat | ChatSchemaFormat


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's ``StructuredOutputsParams``; its settings of grammar compilers are the operator's."""

    json: Text | Schema | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: bool | None = None


SETTINGS = {
    "disable_any_whitespace": "the operator's to set",
    "disable_additional_properties": "say additionalProperties: false in the schema",
    "disable_fallback": "the operator's to set",
    "whitespace_pattern": "the operator's to set",
    "structural_tag": "use json, regex, choice or grammar",
}


def refuse_other_formats(given: object, param: str) -> None:
    """A format's ``type`` that exists elsewhere; before the struct would complain about its fields."""
    kind = given.get("type") if isinstance(given, dict) else None
    if isinstance(kind, str) and kind not in FORMATS:
        problem = f"{param}.type: {kind[:80]!r} is not supported; use one of {', '.join(FORMATS)}."
        raise HeadraceError("unsupported_parameter", problem, param=f"{param}.type")


def without_settings(given: object) -> object:
    """``structured_outputs`` without settings that ask for nothing. Raises ``unsupported_parameter``."""
    if not isinstance(given, dict):
        return given
    for name, instead in SETTINGS.items():
        if given.get(name) not in (None, False):
            param = f"structured_outputs.{name}"
            raise HeadraceError("unsupported_parameter", f"{param} is not supported: {instead}.", param=param)
    return {name: value for name, value in given.items() if name not in SETTINGS}


def of_output_format(given: OutputFormat | None) -> StructuredOutput | None:
    """Of the Responses API's ``text.format``."""
    match given:
        case None | TextFormat():
            return None
        case JsonObjectFormat():
            return StructuredOutput(json_object=True)
        case JsonSchemaFormat():
            return _checked(StructuredOutput(json_schema=schema_text(given.schema)), "text.format.schema")


def of_chat_fields(fields: msgspec.Struct) -> tuple[StructuredOutput | None, str]:
    """What was asked for, and the name of the field that did so (empty: none). Raises where it is more than
    one: they would contradict each other."""
    asked = [(name, found) for name, read in _READERS.items() if (found := read(getattr(fields, name)))]
    if len(asked) > 1:
        problem = f"Send {asked[0][0]} or {asked[1][0]}, not both."
        raise HeadraceError("invalid_request", problem, param=asked[1][0])
    if not asked:
        return None, ""
    name, found = asked[0]
    return _checked(found, name), name


def schema_text(schema: Mapping[str, Any] | str, param: str = "schema") -> str:
    """JSON text of a schema. Raises ``invalid_value`` where a text is not a JSON object."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema, type=JsonObject)
        except (msgspec.DecodeError, RecursionError) as error:
            problem = f"{param}: this text is not a JSON Schema: {str(error)[:200]}."
            raise HeadraceError("invalid_value", problem.replace("`", ""), param=param) from None
    if _depth(schema) > MAX_DEPTH:
        problem = f"{param}: the schema nests more than {MAX_DEPTH} levels deep: flatten it, or use $ref."
        raise HeadraceError("invalid_value", problem, param=param)
    return msgspec.json.encode(schema).decode()


def _checked(structured: StructuredOutput, param: str) -> StructuredOutput:
    if (size := len(_encoder.encode(structured))) > MAX_TEXT_BYTES:
        problem = f"{param}: {size} bytes are more than the {MAX_TEXT_BYTES} that a structure may have."
        raise HeadraceError("invalid_value", problem, param=param)
    if structured.regex is not None and "\x00" in structured.regex:
        raise HeadraceError("invalid_value", f"{param}: a regex has no NUL characters.", param=param)
    return structured


def _depth(value: object) -> int:
    """Not recursive: how deep it may be is what is asked."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        found, depth = stack.pop()
        if isinstance(found, dict | list):
            deepest = max(deepest, depth)
            stack += [(part, depth + 1) for part in (found.values() if isinstance(found, dict) else found)]
    return deepest


def _response_format(given: ResponseFormat | None) -> StructuredOutput | None:
    match given:
        case None | ChatTextFormat():
            return None
        case ChatJsonFormat():
            return StructuredOutput(json_object=True)
        case ChatSchemaFormat(named):
            return StructuredOutput(
                json_schema=schema_text(named.schema, "response_format.json_schema.schema")
            )


def _structured_outputs(given: StructuredOutputs | None) -> StructuredOutput | None:
    if given is None:
        return None
    found = StructuredOutput(
        json_schema=None if given.json is None else schema_text(given.json, "structured_outputs.json"),
        json_object=bool(given.json_object),
        regex=given.regex,
        choice=_choice(given.choice),
        grammar=given.grammar,
    )
    if sum(map(bool, msgspec.structs.astuple(found))) != 1:
        problem = "structured_outputs needs exactly one of json, json_object, regex, choice and grammar."
        raise HeadraceError("invalid_request", problem, param="structured_outputs")
    return found


def _choice(given: Sequence[str] | None) -> tuple[str, ...] | None:
    return tuple(given) if given else None


_READERS: dict[str, Any] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": lambda given: (
        None if given is None else StructuredOutput(json_schema=schema_text(given, "guided_json"))
    ),
    "guided_regex": lambda given: StructuredOutput(regex=given) if given else None,
    "guided_choice": lambda given: StructuredOutput(choice=_choice(given)) if given else None,
    "guided_grammar": lambda given: StructuredOutput(grammar=given) if given else None,
}
