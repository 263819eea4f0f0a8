"""Tools and tool choices as both APIs write them (flat, or under ``function``), and the items and messages
of calls that a client sends back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.api.parse_json import JsonObject
from gateway.generation import ChatMessage, Tool, ToolCall, ToolChoice
from schemas.errors import HeadraceError

MAX_TOOLS = 128
MAX_TOOL_BYTES = 128 << 10  # of all together, as JSON
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
CallId = Annotated[str, Meta(min_length=1, max_length=128)]
ItemState = Literal["in_progress", "completed", "incomplete"]


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``strict`` or not, a forced call follows the schema, and a free one is the model's own."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class SentCall(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call"
):
    call_id: CallId
    name: Name
    arguments: str
    id: str | None = None
    status: ItemState | None = None


class TextPiece(msgspec.Struct, frozen=True):
    text: str
    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]


class SentOutput(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call_output"
):
    call_id: CallId
    output: str | list[TextPiece]
    id: str | None = None
    status: ItemState | None = None


class SentReasoning(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="reasoning"
):
    """``summary`` is what others' models show; ours is in ``content``."""

    summary: list[TextPiece] = []
    content: list[TextPiece] | None = None
    id: str | None = None
    status: ItemState | None = None


def tools_of(given: list[Any] | None, *, nested: bool) -> tuple[Tool, ...]:
    """``nested``: chat completions write the function under its own key. Raises ``HeadraceError``."""
    tools: dict[str, Tool] = {}
    if len(given or ()) > MAX_TOOLS:
        raise HeadraceError("invalid_value", f"tools: give at most {MAX_TOOLS}.", param="tools")
    for i, raw in enumerate(given or ()):
        at = f"tools[{i}]"
        kind = raw.get("type") if isinstance(raw, dict) else None
        if not isinstance(raw, dict) or not isinstance(kind, str):
            raise HeadraceError("invalid_value", f"{at}: give an object with a type.", param=at)
        if kind != "function":
            problem = f"{at}.type: {kind[:80]!r} is not supported; only functions are."
            raise HeadraceError("unsupported_parameter", problem, param=f"{at}.type")
        function = _function(raw, at, nested)
        if function.name in tools:
            problem = f"{at}: there are two tools named {function.name!r}."
            raise HeadraceError("invalid_value", problem, param=at)
        shown = {"name": function.name, "description": function.description or ""}
        if function.parameters is not None:
            shown["parameters"] = function.parameters  # type: ignore[assignment]
        tools[function.name] = Tool(function.name, msgspec.json.encode(shown).decode())
    if sum(len(tool.json.encode()) for tool in tools.values()) > MAX_TOOL_BYTES:
        problem = f"tools: all together may have {MAX_TOOL_BYTES} bytes; send fewer or shorter ones."
        raise HeadraceError("invalid_value", problem, param="tools")
    return tuple(tools.values())


def _function(raw: JsonObject, at: str, nested: bool) -> Function:
    if nested and set(raw) - {"type", "function"}:
        name = min(set(raw) - {"type", "function"})
        raise HeadraceError(
            "unknown_parameter", f"{at}: there is no {name[:80]!r}.", param=f"{at}.{name[:80]}"
        )
    fields = raw.get("function") if nested else {k: v for k, v in raw.items() if k != "type"}
    try:
        return msgspec.convert(fields, Function)
    except (msgspec.ValidationError, RecursionError) as error:
        problem = str(error).replace("`", "")[:300]
        raise HeadraceError("invalid_value", f"{at}: {problem}.", param=at) from None


def choice_of(
    given: str | JsonObject | None, tools: Iterable[Tool], *, nested: bool
) -> tuple[ToolChoice, str]:
    """And the named tool. Raises ``HeadraceError``."""
    names = [tool.name for tool in tools]
    match given:
        case None | "auto":
            return "auto", ""
        case "none":
            return "none", ""
        case "required" if names:
            return "required", ""
        case {"type": "function"}:
            assert isinstance(given, dict)
            fields = given.get("function") if nested else given
            name = fields.get("name") if isinstance(fields, dict) else None
            if name not in names:
                problem = f"tool_choice: there is no tool {str(name)[:80]!r} among the tools."
                raise HeadraceError("invalid_value", problem, param="tool_choice")
            return "named", str(name)
        case "required":
            raise HeadraceError("invalid_request", "tool_choice: there are no tools.", param="tool_choice")
        case _:
            problem = "tool_choice: use 'auto', 'none', 'required' or a function's name."
            raise HeadraceError("unsupported_parameter", problem, param="tool_choice")


class Assistant:
    """Items of one turn of the assistant come one by one, and templates know one message."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []

    def said(self, text: str) -> None:
        self._content.append(text)

    def thought(self, sent: SentReasoning) -> None:
        self._reasoning.append("".join(part.text for part in sent.content or ()))

    def called(self, sent: SentCall) -> None:
        self._calls.append(ToolCall(sent.call_id, sent.name, sent.arguments))

    def message(self) -> list[ChatMessage]:
        """None or one; the next begins anew."""
        if not (self._content or self._reasoning or self._calls):
            return []
        content, reasoning, calls = "".join(self._content), "".join(self._reasoning), tuple(self._calls)
        self._content, self._reasoning, self._calls = [], [], []
        return [ChatMessage("assistant", content, calls, reasoning=reasoning)]


def output_message(sent: SentOutput) -> ChatMessage:
    output = sent.output
    text = output if isinstance(output, str) else "".join(part.text for part in output)
    return ChatMessage("tool", text, tool_call_id=sent.call_id)
