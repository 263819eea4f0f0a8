"""The Response object of OpenAI's Responses API, with this project's additions (``timings``).

Typed after ``openai.types.responses.Response``; ``tests/unit/gateway/test_events.py`` validates it with
the SDK's own types. Knows nothing of transports or of how a response is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.api.token_logprobs import NONE
from gateway.generation import Ended
from gateway.service_tier import tier_of
from schemas.errors import ERRORS
from schemas.ids import ResponseId
from schemas.job import CacheStatus, Job, Memory, Route
from schemas.reply import Usage

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Nothing = Annotated[list[Any], Meta(max_length=0)]  # features not served yet: always empty


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"
):
    pass


class JsonSchemaFormat(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"
):
    """``strict`` or not, the schema is followed."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
    schema: dict[str, Any]  # a JSON Schema: its keys are the schema language's, not ours
    description: str | None = None
    strict: bool | None = None


OutputFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class TextConfig(msgspec.Struct, frozen=True):
    format: OutputFormat = TextFormat()


class Echo(msgspec.Struct, frozen=True, kw_only=True):
    """What the request said and the response repeats. Travels in the job as JSON text, so that any
    gateway can rebuild the object; the defaults are OpenAI's."""

    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    temperature: float = 1.0
    top_p: float = 1.0
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool = True
    parallel_tool_calls: bool = True
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = []
    reasoning: dict[str, Any] | None = None
    top_logprobs: int = 0
    format: OutputFormat = TextFormat()  # of the text


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: Nothing = []
    logprobs: msgspec.Raw = msgspec.field(
        default_factory=lambda: NONE
    )  # encoded once, for all the events of the end that repeat it


class OutputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus
    content: list[ReasoningText]
    summary: Nothing = []


class FunctionCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | ReasoningItem | FunctionCall


class InputTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    total_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()


class ResponseError(msgspec.Struct, frozen=True):
    """``code`` is one of ``schemas.errors``, wider than the SDK's list, which it does not enforce."""

    code: str
    message: str
    type: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """``reason``: OpenAI's ``max_output_tokens``, ``content_filter``; ours: ``cancelled``."""

    reason: str


class Conversation(msgspec.Struct, frozen=True):
    id: str


class Routing(msgspec.Struct, frozen=True):
    """Which model was asked for (None: none), which answers, and why: ``gateway/ROUTING.md``."""

    requested: str | None
    model: str
    by: str
    reason: str


class ResponseTimings(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds: PROTOCOL.md, "Where the time went". The parts add up to ``total_ms``; ``engine_queue_ms``
    is part of ``queue_ms``, None where no worker told it; ``ttft_ms`` None: there was no text."""

    edge_ms: float
    queue_ms: float
    engine_queue_ms: float | None
    prefill_ms: float
    decode_ms: float
    reconnect_ms: float
    transport_ms: float
    ttft_ms: float | None
    total_ms: float


class Response(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created_at: int
    status: Status
    model: str
    output: Sequence[OutputItem]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    conversation: Conversation | None
    previous_response_id: str | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    temperature: float
    top_p: float
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    store: bool
    parallel_tool_calls: bool
    tool_choice: Any
    completed_at: float | None = None
    object: Literal["response"] = "response"
    background: bool = False
    tools: list[dict[str, Any]] = []
    reasoning: dict[str, Any] | None = None
    text: TextConfig = TextConfig()
    top_logprobs: int
    truncation: Literal["auto", "disabled"]
    service_tier: str
    memory: Memory
    cache_status: CacheStatus
    routing: Routing | msgspec.UnsetType = msgspec.UNSET
    timings: ResponseTimings | msgspec.UnsetType = msgspec.UNSET


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed once a response is accepted. ``memory``: whether the conversation is remembered;
    ``unavailable`` tells that its store is away and this answer knows only this request."""

    id: ResponseId
    memory: Memory = "none"
    service_tier: str = "default"
    cache_status: CacheStatus = "none"
    created_unix_ms: int
    model: str
    route: Route | None = None
    conversation: str | None
    previous_response_id: str | None
    echo: Echo


_echo = msgspec.json.Decoder(Echo)


def head(job: Job) -> Head:
    shown = job.presentation
    return Head(
        id=job.response,
        memory=shown.memory,
        service_tier=tier_of(job.priority),
        cache_status=shown.cache,
        created_unix_ms=job.created_unix_ms,
        model=job.model_name,
        route=shown.route,
        conversation=shown.conversation,
        previous_response_id=shown.previous_response_id,
        echo=_echo.decode(shown.echo),
    )


_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


def item_id(
    response: ResponseId, kind: Literal["message", "reasoning", "function_call"] = "message", index: int = 0
) -> str:
    """The id of a response's item: a pure function, so that every gateway gives the same."""
    return _PREFIXES[kind] + response.removeprefix("resp_") + (f"_{index}" if index else "")


def running(head: Head, status: Status) -> Response:
    """The object before its end; text is left to the events."""
    return _build(head, status)


def message(head: Head, status: ItemStatus, content: OutputText | None) -> OutputMessage:
    return OutputMessage(item_id(head.id), status, [] if content is None else [content])


def ended(
    head: Head, end: Ended, content: OutputText | None, output: Sequence[OutputItem] | None = None
) -> Response:
    """``content`` None: no message was opened (it failed or was cancelled before the first token).
    ``output``: the items, where they are more than one message."""
    if output is None:
        output = [] if content is None else [message(head, item_end(end), content)]
    status: Status = end.outcome
    error = details = None
    if end.outcome == "failed":
        code = end.code or "internal_error"
        error = ResponseError(code=code, message=end.message, type=error_type(code))
    elif end.outcome != "completed":
        reason = "max_output_tokens" if end.reason in ("length", None) else str(end.reason)
        details = IncompleteDetails("cancelled" if end.outcome == "cancelled" else reason)
    return _build(
        head,
        status,
        output=output,
        error=error,
        incomplete_details=details,
        usage=_usage(end.usage, end.reasoning_tokens),
        completed_at=(head.created_unix_ms + end.total_ms) / 1000 if end.outcome == "completed" else None,
        timings=_timings(end),
    )


def item_end(end: Ended) -> ItemStatus:
    return "completed" if end.outcome == "completed" else "incomplete"


def _build(
    head: Head,
    status: Status,
    *,
    output: Sequence[OutputItem] = (),
    error: ResponseError | None = None,
    incomplete_details: IncompleteDetails | None = None,
    usage: ResponseUsage | None = None,
    completed_at: float | None = None,
    timings: ResponseTimings | msgspec.UnsetType = msgspec.UNSET,
) -> Response:
    echo = head.echo
    # Of a conversation the oldest rounds are dropped; what the request itself says never is.
    alone = head.conversation is None and head.previous_response_id is None
    return Response(
        id=head.id,
        created_at=head.created_unix_ms // 1000,
        status=status,
        model=head.model,
        output=output,
        error=error,
        incomplete_details=incomplete_details,
        usage=usage,
        completed_at=completed_at,
        timings=timings,
        conversation=None if head.conversation is None else Conversation(head.conversation),
        previous_response_id=head.previous_response_id,
        instructions=echo.instructions,
        max_output_tokens=echo.max_output_tokens,
        metadata=echo.metadata,
        temperature=echo.temperature,
        top_p=echo.top_p,
        user=echo.user,
        safety_identifier=echo.safety_identifier,
        prompt_cache_key=echo.prompt_cache_key,
        store=echo.store,
        parallel_tool_calls=echo.parallel_tool_calls,
        tool_choice=echo.tool_choice,
        tools=echo.tools,
        reasoning=echo.reasoning,
        top_logprobs=echo.top_logprobs,
        text=TextConfig(echo.format),
        truncation="disabled" if alone else "auto",
        memory=head.memory,
        routing=_routing(head),
        service_tier=head.service_tier,
        cache_status=head.cache_status,
    )


def _routing(head: Head) -> Routing | msgspec.UnsetType:
    route = head.route
    if route is None:
        return msgspec.UNSET
    return Routing(route.requested or None, head.model, route.by, route.reason)


def error_type(code: str) -> str:
    """A worker of another version may know codes that this gateway does not."""
    return ERRORS.get(code, ERRORS["internal_error"]).type


def _usage(usage: Usage, reasoning_tokens: int) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens),
    )


def _timings(end: Ended) -> ResponseTimings:
    parts = end.parts
    in_engine = parts.engine_queue_ms
    return ResponseTimings(
        edge_ms=round(parts.edge_ms, 3),
        queue_ms=round(parts.queue_ms, 3),
        engine_queue_ms=None if in_engine is None else round(in_engine, 3),
        prefill_ms=round(parts.prefill_ms, 3),
        decode_ms=round(parts.decode_ms, 3),
        reconnect_ms=round(parts.reconnect_ms, 3),
        transport_ms=round(parts.transport_ms, 3),
        ttft_ms=None if end.ttft_ms is None else round(end.ttft_ms, 3),
        total_ms=round(end.total_ms, 3),
    )
