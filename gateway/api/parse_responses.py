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
from gateway.api.responses_object import Echo
from gateway.caller import Caller
from gateway.generation import ChatMessage, Generation
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.ids import ResponseId, parse_response_id

UNSUPPORTED = {
    "access_programs": "leave it out",
    "background_options": "leave it out",
    "context_management": "leave it out; the gateway keeps the last rounds of a conversation",
    "image": "only text is served",
    "max_tool_calls": "tools are not served",
    "moderation": "moderate before or after the call",
    "prompt": "send the text itself as input",
    "prompt_cache_options": "prefix caching is automatic",
    "prompt_cache_retention": "prefix caching is automatic",
    "reasoning": "reasoning settings are not served",
}

LOGPROBS = "message.output_text.logprobs"


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``annotations`` (always none) and ``logprobs``
    come with an output that is sent back; a prompt has no use for either."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class InputMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[TextPart]
    type: Literal["message"] = "message"
    id: str | None = None  # of an output that is sent back
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class ConversationRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Label


class TextFormat(msgspec.Struct, frozen=True):
    """Of the other formats' fields nothing is read: they are refused by their type."""

    type: str


class TextConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_obfuscation: Literal[False] | None = None


class ResponseCreate(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    input: str | list[InputMessage]
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
    service_tier: str | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[Any] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: str | None = None


def parse_create(raw: JsonObject) -> ResponseCreate:
    """Raises ``HeadraceError``; see ``parse_json`` for the codes."""
    _refuse_other_items(raw.get("input"))
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
    max_tokens = create.max_output_tokens or limits.default_max_tokens
    return Generation(
        api="responses",
        tenant=caller.tenant,
        quota=caller.quota,
        model=create.model or "",
        messages=_messages(create),
        sampling=create.sampling(max_tokens, logprobs=_logprobs(create)),
        max_tokens_given=create.max_output_tokens is not None,
        stop=create.stop_strings(),
        conversation=conversation,
        previous_response_id=_previous(create.previous_response_id),
        store=create.store is not False,
        echo=msgspec.json.encode(_echo(create)).decode(),
        idempotency_key=create.idempotency_key,
        traceparent=traceparent,
        cache=create.cache or "auto",
        received_unix_ms=received_unix_ms,
    )


def _refuse_other_items(items: object) -> None:
    """Input items and parts that exist at OpenAI but are not served get a message that says so, before
    the struct would complain about their fields."""
    if not isinstance(items, list):
        return
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            continue
        kind = item.get("type") or "message"
        if isinstance(kind, str) and kind != "message":
            raise _only_text(f"input[{i}].type", kind, "items of type 'message'")
        parts = item.get("content")
        for j, part in enumerate(parts if isinstance(parts, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in ("input_text", "output_text", "text"):
                raise _only_text(f"input[{i}].content[{j}].type", kind, "text parts")


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
        "service_tier": (create.service_tier not in (None, "auto", "default"), "use 'auto'"),
        "text.format": (text.format is not None and text.format.type != "text", "use {'type': 'text'}"),
        "text.verbosity": (text.verbosity is not None, "leave it out"),
        "tool_choice": (create.tool_choice not in (None, "auto", "none"), "tools are not served; use 'auto'"),
        "tools": (bool(create.tools), "tools are not served"),
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
        messages.extend(ChatMessage(item.role, _text(item.content)) for item in create.input)
    if not any(message.content for message in messages if message.role != "system"):
        raise HeadraceError("invalid_value", "input is empty: send some text.", param="input")
    return tuple(messages)


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
    given = {name: value for name in Echo.__struct_fields__ if (value := getattr(create, name)) is not None}
    return Echo(**given)
