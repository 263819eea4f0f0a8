"""A chat completions request, or the simple chat's question, to a ``Generation``.

Types: ``openai.types.chat.completion_create_params``, with vLLM's additions. Nothing is ignored silently;
see ``parse_responses``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.api import parse_extras
from gateway.api.parse_extras import ExtraFields, prepared, refuse_unserved
from gateway.api.parse_json import JsonObject, to_request
from gateway.api.parse_sampling import Label, Metadata, TokenLimit
from gateway.api.parse_structured import of_chat_fields
from gateway.api.parse_tools import CallId, Effort, Name, choice_of, tools_of
from gateway.api.responses_object import Echo
from gateway.caller import Caller
from gateway.generation import ChatMessage, Generation, Speaker, TemplateOptions, ToolCall
from gateway.service_tier import priority_of
from gateway.tokenizer import TEMPLATE_NAMES
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.sampling import Sampling

SIMPLE_TEMPERATURE = 0.3  # the simple chat has no knobs, and at 1 a small model rambles
_TOOLS = "use tools"
UNSUPPORTED = {
    **parse_extras.UNSUPPORTED,
    "add_special_tokens": "the chat template brings them",
    "audio": "only text is served",
    "function_call": _TOOLS,
    "chat_template": "the model's own is used; chat_template_kwargs sets its options",
    "documents": "put them into a message",
    "echo": "send it with continue_final_message and put the parts together",
    "functions": _TOOLS,
    "media_io_kwargs": "only text is served",
    "modalities": "only text is served",
    "moderation": "moderate before or after the call",
    "prediction": "leave it out",
    "prompt_cache_options": "prefix caching is automatic",
    "prompt_cache_retention": "prefix caching is automatic",
    "return_prompt_text": "leave it out",
    "verbosity": "leave it out",
    "web_search_options": "only functions of the client are called",
}
NEUTRAL = {
    **parse_extras.NEUTRAL,
    "add_special_tokens": False,
    "echo": False,
    "return_prompt_text": False,
}
_UNSUPPORTED_IN_MESSAGES = ("audio", "function_call", "name", "refusal")


TemplateFields = Annotated[
    dict[
        Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}\Z")],
        bool | Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)] | Annotated[str, Meta(max_length=256)],
    ],
    Meta(max_length=16),
]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class CalledFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    arguments: str


class ChatCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None  # of a stream's delta that is sent back


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None  # of an assistant that called tools
    tool_calls: list[ChatCall] | None = None
    tool_call_id: CallId | None = None
    reasoning_content: str | None = None


class ChatCompletion(ExtraFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: TokenLimit | None = None
    max_tokens: TokenLimit | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateFields | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
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
    chat = to_request(prepared(raw, NEUTRAL), ChatCompletion, unsupported=UNSUPPORTED)
    refuse_unserved(chat)
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
    messages = tuple(_message(i, message) for i, message in enumerate(chat.messages))
    tools = tools_of(chat.tools, nested=True)
    choice, named = choice_of(chat.tool_choice, tools, nested=True)
    if not any(message.content or message.tool_calls for message in messages):
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
            given or limits.default_max_tokens,
            logprobs=chat.top_logprobs or 0 if chat.logprobs else None,
            structured=of_chat_fields(chat)[0],
        ),
        template_options=_template_options(chat.chat_template_kwargs or {}),
        speaker=_speaker(chat),
        tools=tools,
        tool_choice=choice,
        named_tool=named,
        one_call=chat.parallel_tool_calls is False,
        reasoning_effort=chat.reasoning_effort,
        max_tokens_given=given is not None,
        stop=chat.stop_strings(),
        priority=priority_of(chat.service_tier, limits.default_class),
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
        priority=limits.default_class,
        traceparent=traceparent,
        received_unix_ms=received_unix_ms,
    )


def _template_options(given: dict[str, str | int | bool]) -> TemplateOptions:
    for name in given:
        if name in TEMPLATE_NAMES:
            param = f"chat_template_kwargs.{name}"
            raise HeadraceError("unsupported_parameter", f"{param} is the gateway's to set.", param=param)
    return tuple(given.items())


def _speaker(chat: ChatCompletion) -> Speaker:
    if not chat.continue_final_message:
        return "nobody" if chat.add_generation_prompt is False else "assistant"
    if chat.add_generation_prompt is not False:
        problem = "continue_final_message needs add_generation_prompt: false."
        raise HeadraceError("invalid_request", problem, param="continue_final_message")
    return "last"


def _served(messages: object) -> object:
    """Messages without the nulls that SDKs write for what they do not use, and refusals, by name, of
    message fields, roles and content parts that exist at OpenAI but are not served."""
    if not isinstance(messages, list):
        return messages
    served: list[object] = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            return messages  # the struct says what is wrong with it
        if message.get("role") == "function":
            raise _unsupported(f"messages[{i}].role", _TOOLS)
        for name in _UNSUPPORTED_IN_MESSAGES:
            if message.get(name):
                raise _unsupported(f"messages[{i}].{name}", "leave it out")
        parts = message.get("content")
        for j, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, dict) and part.get("type", "text") != "text":
                raise _unsupported(f"messages[{i}].content[{j}].type", "only text parts are served")
        dropped = (*_UNSUPPORTED_IN_MESSAGES, "annotations", "tool_calls", "tool_call_id")
        served.append({k: v for k, v in message.items() if not (k in dropped and not v)})
    return served


def _unsupported(param: str, instead: str) -> HeadraceError:
    return HeadraceError("unsupported_parameter", f"{param} is not supported: {instead}.", param=param)


def _refuse_unserved(chat: ChatCompletion) -> None:
    refused = {
        "store": (chat.store is True, "answers are not kept to be listed later; leave it out"),
    }
    for name, (is_refused, instead) in refused.items():
        if is_refused:
            raise HeadraceError(
                "unsupported_parameter", f"This value of {name!r} is not supported: {instead}.", param=name
            )
    if chat.top_logprobs is not None and not chat.logprobs:
        raise HeadraceError("invalid_request", "top_logprobs needs logprobs: true.", param="top_logprobs")


def _message(i: int, sent: Message) -> ChatMessage:
    if sent.content is None and not (sent.role == "assistant" and sent.tool_calls):
        raise HeadraceError(
            "invalid_value", f"messages[{i}].content: give a string or parts.", param=f"messages[{i}].content"
        )
    if (sent.role == "tool") != (sent.tool_call_id is not None):
        problem = f"messages[{i}]: tool_call_id belongs to messages of the role tool, and to each."
        raise HeadraceError("invalid_request", problem, param=f"messages[{i}].tool_call_id")
    if sent.role != "assistant" and (sent.tool_calls or sent.reasoning_content):
        problem = f"messages[{i}]: only the assistant thinks and calls tools."
        raise HeadraceError("invalid_request", problem, param=f"messages[{i}].role")
    calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in sent.tool_calls or ())
    text = "" if sent.content is None else _text(sent.content)
    return ChatMessage(sent.role, text, calls, sent.tool_call_id, sent.reasoning_content or "")


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
