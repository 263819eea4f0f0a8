"""What a request's tools and reasoning settings mean for one model: the template's options, the schema that
forces a call, and how the answer is to be read. Refused where the model cannot. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.generation import Generation, Tool
from gateway.output.manner import Manner
from schemas.errors import HeadraceError
from schemas.job import OutputShape
from schemas.sampling import StructuredOutput

_encoder = msgspec.msgpack.Encoder()


def settle(generation: Generation, manner: Manner, tool_format: str, *, can_force: bool) -> Generation:
    """The request as this model is to be asked. ``tool_format``: the operator's word for it, or empty.
    ``can_force``: its workers can be made to follow a schema.
    Raises ``unsupported_parameter``."""
    if generation.api == "completions":
        return generation
    tools = () if generation.tool_choice == "none" else generation.tools
    if tools and not manner.takes_tools:
        raise _unsupported("tools", "this model's chat template knows no tools: leave them out")
    form = tool_format or manner.tool_format
    forced = generation.tool_choice in ("required", "named")
    if tools and not forced and not form:
        raise _unsupported("tools", "how this model writes calls is not known (gateway.tool_formats)")
    options = _with_effort(generation, manner)
    thinking = manner.thinking if dict(options).get(manner.switch or "", manner.thinks) else ""
    sampling = generation.sampling
    if forced and tools:
        if not can_force:
            raise _unsupported("tool_choice", "this model is served without structured output; use 'auto'")
        if sampling.structured is not None:
            problem = "A forced tool call and a text format contradict each other."
            raise HeadraceError("invalid_request", problem, param="tool_choice")
        if thinking and manner.switch is None:
            raise _unsupported("tool_choice", "this model always thinks first; use 'auto'")
        if thinking:
            options = (*(pair for pair in options if pair[0] != manner.switch), (manner.switch or "", False))
        thinking = ""
        structured = StructuredOutput(json_schema=forcing_schema(generation))
        sampling = replace(sampling, structured=structured)
        form = "arguments" if generation.tool_choice == "named" else "list"
    shape = None
    if tools or thinking:
        shown = tuple((tool.name, tool.string_parameters()) for tool in tools if _callable(generation, tool))
        shape = OutputShape(form if tools else "", shown, thinking, generation.one_call)
    return replace(generation, tools=tools, template_options=options, sampling=sampling, shape=shape)


def _callable(generation: Generation, tool: Tool) -> bool:
    return generation.tool_choice != "named" or tool.name == generation.named_tool


def _with_effort(generation: Generation, manner: Manner) -> tuple[tuple[str, str | int | bool], ...]:
    effort, options = generation.reasoning_effort, generation.template_options
    if effort is None:
        return options
    if effort == "none":
        if manner.switch is not None:
            return (*options, (manner.switch, False))
        if not manner.thinks:
            return options
        raise _unsupported("reasoning.effort", "this model always thinks; leave it out")
    if not manner.takes_effort:
        raise _unsupported("reasoning.effort", "this model has no levels of it; 'none' or nothing")
    return (*options, ("reasoning_effort", effort))


def forcing_schema(generation: Generation) -> str:
    """JSON Schema of the answer: the arguments of the named tool, or a list of calls (as in vLLM).
    Raises ``unsupported_parameter``."""
    schemas = [(tool.name, tool.schema()) for tool in generation.tools if _callable(generation, tool)]
    if generation.tool_choice == "named":
        return msgspec.json.encode(schemas[0][1]).decode()
    definitions: dict[str, Any] = {}
    calls = []
    for name, schema in schemas:
        for shared, definition in schema.pop("$defs", {}).items():
            if definitions.setdefault(shared, definition) != definition:
                raise _unsupported(
                    "tools", f"two of them define {shared!r} in $defs, differently: rename one"
                )
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"type": "string", "enum": [name]}, "parameters": schema},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    whole: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}
    if generation.one_call:
        whole["maxItems"] = 1
    if definitions:
        whole["$defs"] = definitions
    return msgspec.json.encode(whole).decode()


def rendering(generation: Generation) -> str:
    """Tells prompts apart that the template made with other tools or options; empty without any."""
    if not (generation.tools or generation.template_options):
        return ""
    given = [[tool.json for tool in generation.tools], sorted(generation.template_options)]
    return hashlib.sha256(_encoder.encode(given)).hexdigest()[:16]


def _unsupported(param: str, problem: str) -> HeadraceError:
    return HeadraceError("unsupported_parameter", f"{param}: {problem}.", param=param)
