"""The HTTP routes as others read them: what each takes, answers and refuses. Served as /openapi.json.

A table, which ``gateway/api/openapi.py`` writes out; tests hold it against the routes and, with a client
that tries everything it allows and forbids, against their answers. Must not know how a route works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import msgspec

from gateway.api import (
    chat_events,
    completions_events,
    conversations,
    item_list,
    ops,
    parse_chat,
    parse_completions,
    parse_responses,
    responses_events,
    responses_http,
    responses_object,
    tokens,
)
from gateway.api.errors import HttpError
from gateway.api.responses_http import StreamError
from gateway.api.simple_chat import Answer

Struct = type[msgspec.Struct]


@dataclass(frozen=True, slots=True)
class Body:
    """``refused``: fields that exist elsewhere, to what to do instead; here they may only be null."""

    struct: Struct
    example: dict[str, Any]
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """Server-sent events, each with one of ``structs`` as its JSON; ``named``: it has an ``event`` line,
    too. ``ends_with``: data of the last event, if that is no JSON."""

    structs: tuple[Struct, ...]
    named: bool = False
    ends_with: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """``answers``: a struct sent as JSON, or the media types of a text. ``refusals``: codes of
    ``schemas.errors``. ``or_unavailable``: what 503 with a text says."""

    method: Literal["get", "post", "delete"]
    path: str
    id: str
    tag: str
    summary: str
    answers: Struct | tuple[str, ...]
    refusals: tuple[str, ...]
    description: str = ""
    parameters: tuple[str, ...] = ()
    body: Body | None = None
    stream: Stream | None = None
    names_response: bool = False  # the answer has an X-Request-Id
    or_unavailable: str = ""


TAGS = {
    "Responses": "OpenAI's Responses API. The same over a WebSocket: connect to /v1/responses.",
    "Conversations": "Named by their clients; a conversation begins with its first turn.",
    "Chat": "OpenAI's chat completions, and a simple chat that remembers each user.",
    "Models": "What live workers serve.",
    "Operations": "For whoever runs the gateway.",
}

_DOOR = (
    "head_too_large",
    "request_timeout",
    "forbidden",
    "invalid_api_key",
    "too_many_attempts",
    "auth_unavailable",
    "too_many_connections",
    "internal_error",
)
_BODY = (
    "invalid_json",
    "invalid_encoding",
    "invalid_request",
    "unknown_parameter",
    "unsupported_parameter",
    "invalid_value",
    "payload_too_large",
)
_SUBMIT = (
    "invalid_token_id",
    "context_length_exceeded",
    "model_not_found",
    "conversation_busy",
    "idempotency_conflict",
    "queue_full",
    "rate_limit_exceeded",
    "deadline_unreachable",
    "broker_unavailable",
    "storage_full",
    "no_worker",
    "going_away",
)
_END = ("cancelled", "deadline_exceeded", "engine_rejected", "engine_failed", "invalid_job", "poison")
_KEPT = ("response_not_found", "broker_unavailable")
_MEMORY = ("context_unavailable",)
_LISTED = ("invalid_value", "unknown_parameter", "unsupported_parameter")
_GENERATE = (*_DOOR, *_BODY, *_SUBMIT, *_END, *_KEPT)

_SOCKET_ONLY = {
    "stream_id": "it is for WebSockets",
    "idempotency_key": "send the header Idempotency-Key",
}
_EVENTS = Stream((*get_args(responses_events.Event), StreamError), named=True)
_CHUNKS = Stream((chat_events.Chunk, HttpError), ends_with="[DONE]")

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "post",
        "/v1/responses",
        "createResponse",
        "Responses",
        "Generate a response",
        description="As JSON when it has ended, or with `stream` as events while it is generated.",
        parameters=("idempotency_key", "traceparent", "client_request_id"),
        body=Body(
            parse_responses.ResponseCreate,
            {"input": "What is a headrace?", "max_output_tokens": 64},
            refused={**parse_responses.UNSUPPORTED, **_SOCKET_ONLY},
        ),
        answers=responses_object.Response,
        stream=_EVENTS,
        refusals=(*_GENERATE, *_MEMORY, "previous_response_not_found"),
        names_response=True,
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}",
        "retrieveResponse",
        "Responses",
        "A response as it stands, or its events from a number on",
        description="Of any gateway, from the moment it was accepted until its log is deleted.",
        parameters=("response_id", "stream", "starting_after", "include_obfuscation"),
        answers=responses_object.Response,
        stream=_EVENTS,
        refusals=(
            *_DOOR,
            *_KEPT,
            "invalid_request",
            "invalid_value",
            "unknown_parameter",
            "unsupported_parameter",
        ),
        names_response=True,
    ),
    Operation(
        "post",
        "/v1/responses/{response_id}/cancel",
        "cancelResponse",
        "Responses",
        "End a response, whichever gateway it runs at",
        description="Answers when it has ended. What has ended already is left as it is.",
        parameters=("response_id",),
        answers=responses_object.Response,
        refusals=(*_DOOR, *_KEPT),
        names_response=True,
    ),
    Operation(
        "delete",
        "/v1/responses/{response_id}",
        "deleteResponse",
        "Responses",
        "Delete a response, at every gateway; one that is running is cancelled",
        parameters=("response_id",),
        answers=responses_http.Deleted,
        refusals=(*_DOOR, *_KEPT, *_MEMORY),
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}/input_items",
        "listInputItems",
        "Responses",
        "What the client said in a response's turn",
        parameters=("response_id", "after", "limit", "order"),
        answers=item_list.ItemList,
        refusals=(*_DOOR, *_KEPT, *_LISTED),
    ),
    Operation(
        "get",
        "/v1/conversations/{name}",
        "retrieveConversation",
        "Conversations",
        "Whether a conversation is remembered",
        parameters=("conversation",),
        answers=conversations.Conversation,
        refusals=(*_DOOR, *_MEMORY, "conversation_not_found"),
    ),
    Operation(
        "delete",
        "/v1/conversations/{name}",
        "deleteConversation",
        "Conversations",
        "Forget a conversation",
        parameters=("conversation",),
        answers=conversations.Deleted,
        refusals=(*_DOOR, *_MEMORY, "conversation_not_found"),
    ),
    Operation(
        "get",
        "/v1/conversations/{name}/items",
        "listConversationItems",
        "Conversations",
        "What is remembered of a conversation",
        parameters=("conversation", "after", "limit", "order"),
        answers=item_list.ItemList,
        refusals=(*_DOOR, *_MEMORY, *_LISTED, "conversation_not_found"),
    ),
    Operation(
        "post",
        "/v1/chat/completions",
        "createChatCompletion",
        "Chat",
        "Answer a chat whose messages the client keeps",
        description="As JSON, or with `stream` as chunks. vLLM's sampling parameters are taken, too.",
        parameters=("idempotency_key", "traceparent", "client_request_id"),
        body=Body(
            parse_chat.ChatCompletion,
            {"messages": [{"role": "user", "content": "What is a headrace?"}], "max_tokens": 64},
            refused=parse_chat.UNSUPPORTED,
        ),
        answers=chat_events.ChatCompletion,
        stream=_CHUNKS,
        refusals=_GENERATE,
        names_response=True,
    ),
    Operation(
        "post",
        "/v1/completions",
        "createCompletion",
        "Chat",
        "Continue a text",
        description="As JSON, or with `stream` as chunks. The prompt may be token ids.",
        parameters=("idempotency_key", "traceparent", "client_request_id"),
        body=Body(
            parse_completions.Completion,
            {"prompt": "A headrace is", "max_tokens": 16},
            refused=parse_completions.UNSUPPORTED,
        ),
        answers=completions_events.Completion,
        stream=Stream((completions_events.Completion, HttpError), ends_with="[DONE]"),
        refusals=_GENERATE,
        names_response=True,
    ),
    Operation(
        "post",
        "/chat",
        "chat",
        "Chat",
        "Answer a user's question; the user's conversation is remembered",
        parameters=("idempotency_key", "traceparent", "client_request_id"),
        body=Body(parse_chat.Question, {"user_id": "me", "query": "What is a headrace?"}),
        answers=Answer,
        refusals=(*_GENERATE, *_MEMORY),
        names_response=True,
    ),
    Operation(
        "post",
        "/v1/tokens",
        "createToken",
        "Operations",
        "A short-lived token for a page, made with an API key by the page's own server",
        body=Body(tokens.TokenRequest, {"expires_in_s": 600}),
        answers=tokens.Token,
        refusals=(*_DOOR, *_BODY, "not_found"),
    ),
    Operation(
        "get", "/v1/models", "listModels", "Models", "All models", answers=ops.ModelList, refusals=_DOOR
    ),
    Operation(
        "get",
        "/v1/models/{name}",
        "retrieveModel",
        "Models",
        "One model",
        parameters=("model",),
        answers=ops.Model,
        refusals=(*_DOOR, "model_not_found"),
    ),
    Operation(
        "get",
        "/healthz",
        "healthz",
        "Operations",
        "Whether the process lives",
        answers=("text/plain",),
        refusals=("forbidden", "internal_error"),
    ),
    Operation(
        "get",
        "/readyz",
        "readyz",
        "Operations",
        "Whether a chat would be answered now",
        answers=("text/plain",),
        or_unavailable="Not now, and why",
        refusals=("forbidden", "internal_error"),
    ),
    Operation(
        "get",
        "/metrics",
        "metrics",
        "Operations",
        "Metrics for Prometheus",
        answers=("text/plain", "application/openmetrics-text"),
        refusals=("forbidden", "internal_error"),
    ),
)
