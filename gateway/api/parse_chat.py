"""A chat completions request, or the simple chat's question, to a ``Generation``.

Types: ``openai.types.chat.completion_create_params``, with vLLM's additions. Nothing is ignored silently;
see ``parse_responses``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.api.parse_json import JsonObject, to_request
from gateway.api.parse_sampling import Label, Metadata, SamplingFields, TokenLimit
from gateway.api.responses_object import Echo
from gateway.caller import Caller
from gateway.generation import ChatMessage, Generation
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.sampling import Sampling

SIMPLE_TEMPERATURE = 0.3  # the simple chat has no knobs, and at 1 a small model rambles
_TOOLS = "tools are not served"
UNSUPPORTED = {
    "audio": "only text is served",
    "function_call": _TOOLS,
    "functions": _TOOLS,
    "guided_choice": "structured output is not served",
    "guided_json": "structured output is not served",
    "guided_regex": "structured output is not served",
    "modalities": "only text is served",
    "moderation": "moderate before or after the call",
    "prediction": "leave it out",
    "prompt_cache_options": "prefix caching is automatic",
    "prompt_cache_retention": "prefix caching is automatic",
    "reasoning_effort": "reasoning settings are not served",
    "structured_outputs": "structured output is not served",
    "verbosity": "leave it out",
    "web_search_options": _TOOLS,
}
_UNSUPPORTED_IN_MESSAGES = ("audio", "function_call", "name", "refusal", "tool_calls", "tool_call_id")


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: str


class ChatCompletion(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    model: Label | None = None
    max_completion_tokens: TokenLimit | None = None
    max_tokens: TokenLimit | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    service_tier: str | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[Any] | None = None


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The simple chat. ``user_id`` groups the conversation."""

    user_id: Annotated[str, Meta(min_length=1, max_length=256)]
    query: Annotated[str, Meta(min_length=1)]


def parse_chat(raw: JsonObject) -> ChatCompletion:
    """Raises ``HeadraceError``; see ``parse_json`` for the codes."""
    if "messages" in raw:
        raw = {**raw, "messages": _served(raw["messages"])}
    chat = to_request(raw, ChatCompletion, unsupported=UNSUPPORTED)
    _refuse_unserved(chat)
    return chat


def parse_question(raw: JsonObject) -> Question:
    return to_request(raw, Question)


def chat_generation(
    chat: ChatCompletion,
    *,
    caller: Caller,
    limits: Gateway,
    received_unix_ms: float,
    traceparent: str | None = None,
) -> Generation:
    """Raises ``HeadraceError`` where fields contradict each other."""
    if chat.max_tokens and chat.max_completion_tokens and chat.max_tokens != chat.max_completion_tokens:
        raise HeadraceError(
            "invalid_request", "Send max_completion_tokens or max_tokens, not both.", param="max_tokens"
        )
    given = chat.max_completion_tokens or chat.max_tokens
    messages = tuple(ChatMessage(m.role, _text(m.content)) for m in chat.messages)
    if not any(message.content for message in messages):
        raise HeadraceError("invalid_value", "messages: all are empty; send some text.", param="messages")
    echo = Echo(
        max_output_tokens=given,
        metadata=chat.metadata or {},
        temperature=1.0 if chat.temperature is None else chat.temperature,
        top_p=1.0 if chat.top_p is None else chat.top_p,
        user=chat.user,
        safety_identifier=chat.safety_identifier,
        prompt_cache_key=chat.prompt_cache_key,
        store=False,
    )
    return Generation(
        api="chat",
        tenant=caller.tenant,
        quota=caller.quota,
        model=chat.model or "",
        messages=messages,
        sampling=chat.sampling(
            given or limits.default_max_tokens, logprobs=chat.top_logprobs or 0 if chat.logprobs else None
        ),
        max_tokens_given=given is not None,
        stop=chat.stop_strings(),
        store=False,
        echo=msgspec.json.encode(echo).decode(),
        traceparent=traceparent,
        cache=chat.cache or "auto",
        received_unix_ms=received_unix_ms,
    )


def question_generation(
    question: Question,
    *,
    caller: Caller,
    limits: Gateway,
    received_unix_ms: float,
    traceparent: str | None = None,
) -> Generation:
    return Generation(
        api="simple",
        tenant=caller.tenant,
        quota=caller.quota,
        model="",
        messages=(ChatMessage("user", question.query),),
        sampling=Sampling(max_tokens=limits.default_max_tokens, temperature=SIMPLE_TEMPERATURE),
        max_tokens_given=False,
        # its own name space: a conversation of the Responses API never meets a user's
        conversation=f"user/{question.user_id}",
        traceparent=traceparent,
        received_unix_ms=received_unix_ms,
    )


def _served(messages: object) -> object:
    """Messages without the nulls that SDKs write for what they do not use, and refusals, by name, of
    message fields, roles and content parts that exist at OpenAI but are not served."""
    if not isinstance(messages, list):
        return messages
    served: list[object] = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            return messages  # the struct says what is wrong with it
        if message.get("role") in ("tool", "function"):
            raise _unsupported(f"messages[{i}].role", _TOOLS)
        for name in _UNSUPPORTED_IN_MESSAGES:
            if message.get(name):
                raise _unsupported(f"messages[{i}].{name}", "leave it out")
        parts = message.get("content")
        for j, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, dict) and part.get("type", "text") != "text":
                raise _unsupported(f"messages[{i}].content[{j}].type", "only text parts are served")
        dropped = (*_UNSUPPORTED_IN_MESSAGES, "annotations")
        served.append({k: v for k, v in message.items() if not (k in dropped and not v)})
    return served


def _unsupported(param: str, instead: str) -> HeadraceError:
    return HeadraceError("unsupported_parameter", f"{param} is not supported: {instead}.", param=param)


def _refuse_unserved(chat: ChatCompletion) -> None:
    refused = {
        "n": (chat.n not in (None, 1), "send one request for each choice"),
        "response_format": (
            chat.response_format is not None and chat.response_format.type != "text",
            "structured output is not served; use {'type': 'text'}",
        ),
        "store": (chat.store is True, "answers are not kept to be listed later; leave it out"),
        "service_tier": (chat.service_tier not in (None, "auto", "default"), "use 'auto'"),
        "tool_choice": (chat.tool_choice not in (None, "auto", "none"), _TOOLS),
        "tools": (bool(chat.tools), _TOOLS),
    }
    for name, (is_refused, instead) in refused.items():
        if is_refused:
            raise HeadraceError(
                "unsupported_parameter", f"This value of {name!r} is not supported: {instead}.", param=name
            )
    if chat.top_logprobs is not None and not chat.logprobs:
        raise HeadraceError("invalid_request", "top_logprobs needs logprobs: true.", param="top_logprobs")
    if chat.stream_options is not None and not chat.stream:
        raise HeadraceError("invalid_request", "stream_options needs stream: true.", param="stream_options")


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
