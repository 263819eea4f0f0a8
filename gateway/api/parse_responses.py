"""A Responses request (POST body or ``response.create`` event) to a ``Generation``.

Types: ``openai.types.responses.response_create_params``. Nothing is ignored silently: a field is served,
repeated in the response object as a label, refused as unsupported with what to do instead, or unknown.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.api.parse_json import JsonObject, to_request
from gateway.api.parse_sampling import IdempotencyKey, Label, Metadata, SamplingFields, TokenLimit
from gateway.api.parse_structured import of_output_format, refuse_other_formats
from gateway.api.parse_tools import (
    Assistant,
    Effort,
    SentCall,
    SentOutput,
    SentReasoning,
    choice_of,
    output_message,
    tools_of,
)
from gateway.api.responses_object import Echo, OutputFormat, TextFormat
from gateway.caller import Caller
from gateway.generation import ChatMessage, Generation
from gateway.service_tier import priority_of
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.ids import ResponseId, parse_response_id

UNSUPPORTED = {
    "access_programs": "leave it out",
    "background_options": "leave it out",
    "context_management": "leave it out; the gateway keeps the last rounds of a conversation",
    "image": "only text is served",
    "max_tool_calls": "calls are the client's to make; count them there",
    "moderation": "moderate before or after the call",
    "prompt": "send the text itself as input",
    "prompt_cache_options": "prefix caching is automatic",
    "prompt_cache_retention": "prefix caching is automatic",
}

LOGPROBS = "message.output_text.logprobs"


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``annotations`` (always none) and ``logprobs``
    come with an output that is sent back; a prompt has no use for either."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class InputMessage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="message"
):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[TextPart]
    id: str | None = None  # of an output that is sent back
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class Reasoning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effort: Effort | None = None
    summary: None = None  # what the model thought is shown whole
    generate_summary: None = None


InputItem = InputMessage | SentCall | SentOutput | SentReasoning
ITEMS = ("message", "function_call", "function_call_output", "reasoning")


class ConversationRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Label


class TextConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: OutputFormat | None = None
    verbosity: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_obfuscation: Literal[False] | None = None


class ResponseCreate(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    input: str | list[InputItem]
    model: Label | None = None
    instructions: str | None = None
    conversation: Label | ConversationRef | None = None
    previous_response_id: str | None = None
    max_output_tokens: TokenLimit | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_id: Label | None = None  # WebSocket only
    idempotency_key: IdempotencyKey | None = None  # WebSocket only; HTTP has a header for it
    text: TextConfig | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    background: bool | None = None
    generate: bool | None = None
    include: list[str] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    service_tier: str | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[Any] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: str | None = None


def parse_create(raw: JsonObject) -> ResponseCreate:
    """Raises ``HeadraceError``; see ``parse_json`` for the codes."""
    _refuse_summaries(raw.get("reasoning"))
    raw = {**raw, "input": _items(raw["input"])} if "input" in raw else raw
    if isinstance(text := raw.get("text"), dict):
        refuse_other_formats(text.get("format"), "text.format")
    create = to_request(raw, ResponseCreate, unsupported=UNSUPPORTED)
    _refuse_unserved(create)
    return create


def to_generation(
    create: ResponseCreate,
    *,
    caller: Caller,
    limits: Gateway,
    received_unix_ms: float,
    traceparent: str | None = None,
) -> Generation:
    """Raises ``HeadraceError`` where fields contradict each other."""
    conversation = create.conversation
    if isinstance(conversation, ConversationRef):
        conversation = conversation.id
    if conversation is not None and create.previous_response_id is not None:
        raise HeadraceError(
            "invalid_request",
            "Send conversation or previous_response_id, not both.",
            param="previous_response_id",
        )
    if conversation == "":
        raise HeadraceError("invalid_value", "conversation: name it, or leave it out.", param="conversation")
    tools = tools_of(create.tools, nested=False)
    choice, named = choice_of(create.tool_choice, tools, nested=False)
    max_tokens = create.max_output_tokens or limits.default_max_tokens
    structured = of_output_format(_format(create))
    return Generation(
        api="responses",
        tenant=caller.tenant,
        quota=caller.quota,
        model=create.model or "",
        messages=_messages(create),
        sampling=create.sampling(max_tokens, logprobs=_logprobs(create), structured=structured),
        max_tokens_given=create.max_output_tokens is not None,
        tools=tools,
        tool_choice=choice,
        named_tool=named,
        one_call=create.parallel_tool_calls is False,
        reasoning_effort=None if create.reasoning is None else create.reasoning.effort,
        stop=create.stop_strings(),
        conversation=conversation,
        previous_response_id=_previous(create.previous_response_id),
        priority=priority_of(create.service_tier, limits.default_class),
        store=create.store is not False,
        echo=msgspec.json.encode(_echo(create)).decode(),
        idempotency_key=create.idempotency_key,
        traceparent=traceparent,
        cache=create.cache or "auto",
        received_unix_ms=received_unix_ms,
    )


def _refuse_summaries(reasoning: object) -> None:
    given = reasoning if isinstance(reasoning, dict) else {}
    for name in ("summary", "generate_summary"):
        if given.get(name) is not None:
            param = f"reasoning.{name}"
            problem = f"{param} is not supported: reasoning is shown as it is; leave it out."
            raise HeadraceError("unsupported_parameter", problem, param=param)


def _items(items: object) -> object:
    """Input items with their type, and without the nulls that SDKs write for what they do not use. Those that
    exist at OpenAI but are not served, and such parts, get a message that says so, before the struct would
    complain about their fields."""
    if not isinstance(items, list):
        return items
    typed: list[object] = []
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            typed.append(item)
            continue
        kind = item.get("type") or "message"
        if kind == "item_reference":
            problem = f"input[{i}]: items are not kept to be referred to; send it, or previous_response_id."
            raise HeadraceError("unsupported_parameter", problem, param=f"input[{i}].type")
        if isinstance(kind, str) and kind not in ITEMS:
            raise _only_text(f"input[{i}].type", kind, f"items of type {', '.join(ITEMS)}")
        if kind == "reasoning" and item.get("encrypted_content") is not None:
            param = f"input[{i}].encrypted_content"
            raise HeadraceError(
                "unsupported_parameter", f"{param} cannot be read: leave it out.", param=param
            )
        typed.append({**{k: v for k, v in item.items() if v is not None}, "type": kind})
        parts = item.get("content") if kind == "message" else item.get("output")
        for j, part in enumerate(parts if isinstance(parts, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in ("input_text", "output_text", "text"):
                name = "content" if "content" in item else "output"
                raise _only_text(f"input[{i}].{name}[{j}].type", kind, "text parts")
    return typed


def _only_text(param: str, kind: str, served: str) -> HeadraceError:
    return HeadraceError(
        "unsupported_parameter", f"{param}: {kind[:80]!r} is not supported; only {served} are.", param=param
    )


def _refuse_unserved(create: ResponseCreate) -> None:
    text = create.text or TextConfig()
    refused = {
        "background": (bool(create.background), "stream instead, and resume if the connection breaks"),
        "generate": (create.generate is False, "leave it out"),
        "include": (bool(set(create.include or ()) - {LOGPROBS}), f"only {LOGPROBS!r} is"),
        "text.verbosity": (text.verbosity is not None, "leave it out"),
        "truncation": _truncation(create),
    }
    for name, (is_refused, instead) in refused.items():
        if is_refused:
            raise HeadraceError(
                "unsupported_parameter", f"This value of {name!r} is not supported: {instead}.", param=name
            )


def _truncation(create: ResponseCreate) -> tuple[bool, str]:
    """A conversation drops its oldest rounds where they do not fit; what the request itself says is never
    cut. Whoever asks for the other is told."""
    if create.conversation is None and create.previous_response_id is None:
        return create.truncation not in (None, "disabled"), "use 'disabled' and send less"
    return create.truncation not in (None, "auto"), "a conversation's oldest rounds are dropped: use 'auto'"


def _messages(create: ResponseCreate) -> tuple[ChatMessage, ...]:
    messages: list[ChatMessage] = []
    if create.instructions:
        messages.append(ChatMessage("system", create.instructions))
    if isinstance(create.input, str):
        messages.append(ChatMessage("user", create.input))
    else:
        messages += _of_items(create.input)
    if not any(message.content or message.tool_calls for message in messages if message.role != "system"):
        raise HeadraceError("invalid_value", "input is empty: send some text.", param="input")
    return tuple(messages)


def _of_items(items: list[InputItem]) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    assistant = Assistant()
    for item in items:
        match item:
            case SentReasoning():
                messages += assistant.message()
                assistant.thought(item)
            case SentCall():
                assistant.called(item)
            case SentOutput():
                messages += [*assistant.message(), output_message(item)]
            case InputMessage(role="assistant"):
                assistant.said(_text(item.content))
            case InputMessage():
                messages += [*assistant.message(), ChatMessage(item.role, _text(item.content))]
    return messages + assistant.message()


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _logprobs(create: ResponseCreate) -> int | None:
    """Alternatives per token; asking for any is asking for log probabilities, as is ``include``."""
    if create.top_logprobs:
        return create.top_logprobs
    return 0 if create.include else None


def _previous(given: str | None) -> ResponseId | None:
    if given is None:
        return None
    try:
        return parse_response_id(given)
    except HeadraceError as error:
        code, param = "previous_response_not_found", "previous_response_id"
        raise HeadraceError(code, error.message, param=param) from None


def _echo(create: ResponseCreate) -> Echo:
    given = {
        name: value
        for name in Echo.__struct_fields__
        if name != "format" and (value := getattr(create, name)) is not None
    }
    if create.reasoning is not None:
        given["reasoning"] = {"effort": create.reasoning.effort, "summary": None}
    return Echo(**given, format=_format(create) or TextFormat())


def _format(create: ResponseCreate) -> OutputFormat | None:
    return None if create.text is None else create.text.format
