"""The seam between the API surfaces and the pipeline: a checked request in, updates of its response out.

A surface (Responses, chat completions, the simple chat) parses its own JSON into a ``Generation`` and
turns ``Update`` values into its own events. Neither side knows the other's wire format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from broker.stages import Parts
from broker.telemetry import Trace
from gateway.cache_key import CacheWish
from gateway.output.pieces import Piece
from schemas.ids import ResponseId, TenantId
from schemas.job import Message as ChatMessage
from schemas.job import OutputShape, Priority, Route, ToolCall
from schemas.quota import AS_CONFIGURED, OwnQuota
from schemas.reply import FinishReason, Timings, TokenLogprobs, Usage
from schemas.sampling import Sampling

Role = Literal["system", "developer", "user", "assistant", "tool"]
Api = Literal["responses", "chat", "completions", "simple"]
Outcome = Literal["completed", "incomplete", "failed", "cancelled"]
Speaker = Literal["assistant", "nobody", "last"]
TemplateOptions = tuple[tuple[str, str | int | bool], ...]
ToolChoice = Literal["auto", "none", "required", "named"]

__all__ = ["ChatMessage", "ToolCall"]


@dataclass(frozen=True, slots=True)
class Tool:
    """``json``: the function as templates are shown it, JSON text of {name, description, parameters}."""

    name: str
    json: str

    def function(self) -> dict[str, Any]:
        return msgspec.json.decode(self.json, type=dict[str, Any])

    def schema(self) -> dict[str, Any]:
        """Of its arguments; any object where it has none."""
        given = self.function().get("parameters")
        return {"type": "object"} if not isinstance(given, dict) or not given else given

    def string_parameters(self) -> tuple[str, ...]:
        properties = self.schema().get("properties")
        if not isinstance(properties, dict):
            return ()
        return tuple(n for n, at in properties.items() if isinstance(at, dict) and at.get("type") == "string")


class Generation(msgspec.Struct, frozen=True):
    """A request that passed every check which needs no other part.

    ``messages``: this turn's, with the system message first if there is one; earlier turns come from
    ``conversation`` or ``previous_response_id`` (never both). ``sampling.max_tokens`` is 0-free: where
    the client gave none, ``max_tokens_given`` is False and the pipeline fits it to the model.
    ``echo``: JSON text of the request's fields which the response object repeats. ``idempotency_key``: a
    request that repeats it is given the response to the first. ``prompt_ids``: the whole prompt, instead of
    messages. ``special_tokens``: whether a prompt that is plain text gets those of the tokenizer.
    ``template_options``: for the chat template, by name. ``speaker``: who goes on behind the messages: the
    assistant, ``nobody`` (the template shows the messages alone), or whoever said the ``last`` one, in the
    middle of it. ``sibling``: which of how many that answer the same request. ``routed``: the model that
    another of them was given, and why. ``named_tool``: the one to call where ``tool_choice`` is ``named``.
    ``one_call``: at most one. ``shape``: how the answer is read, known once the model is
    (``gateway/calling.py``). ``cache``: whether the answer may be shared. ``request_id``: the client's own
    name for its request. ``trace``: of this gateway's part, where that is traced.
    """

    api: Api
    tenant: TenantId
    model: str  # empty: the default model
    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    max_tokens_given: bool = True
    prompt_ids: tuple[int, ...] = ()
    special_tokens: bool = True
    template_options: TemplateOptions = ()
    speaker: Speaker = "assistant"
    sibling: tuple[int, int] = (0, 1)
    routed: tuple[str, Route] | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    named_tool: str = ""
    one_call: bool = False
    reasoning_effort: str | None = None
    shape: OutputShape | None = None
    stop: tuple[str, ...] = ()
    conversation: str | None = None
    previous_response_id: ResponseId | None = None
    priority: Priority = "interactive"
    deadline_s: float | None = None
    store: bool = True
    echo: str = "{}"
    idempotency_key: str | None = None
    traceparent: str | None = None
    request_id: str = ""
    trace: Trace | None = None
    quota: OwnQuota = AS_CONFIGURED
    rtt_ms: float | None = None  # to the client, measured
    cache: CacheWish = "auto"
    received_unix_ms: float = 0.0  # when the request's bytes were here; edge time counts from it


@dataclass(frozen=True, slots=True)
class Queued:
    """Where it stands among the jobs that wait: ``position`` 1 starts next, 0 need not wait. ``eta_ms``:
    about when it starts; None: not known yet. An estimate, not of the log: it has no cursor."""

    position: int = 0
    eta_ms: int | None = 0


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has the response."""


class Text(msgspec.Struct, frozen=True):
    """Text released by tokens ``first_token …< end_token`` (positions in the completion, from 0).
    ``end_token`` makes the cursor: see ``gateway/cursor.py``. Empty when only ``logprobs`` are news. A
    msgspec struct because there is one for each event: 0.15 us where a frozen dataclass takes 0.8."""

    text: str
    first_token: int
    end_token: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None


class Parsed(msgspec.Struct, frozen=True):
    """What a completion with a shape brings instead of ``Text``: the pieces of each token that brought any,
    by its number (from 1; behind the last, what the end released). ``token_ids`` and ``logprobs`` are those
    of tokens ``first_token …< end_token``."""

    entries: tuple[tuple[int, tuple[Piece, ...]], ...]
    first_token: int
    end_token: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The one terminal update. ``total``: tokens of the completion that count. ``timings`` are the
    worker's, None where none has told any (a stop string, a cancel: ``usage.cached_tokens`` is not known
    then, either); ``ttft_ms`` is request received to first text, ``parts`` where ``total_ms`` went."""

    outcome: Outcome
    total: int
    reason: FinishReason | Literal["cancelled", "deadline"] | None = None
    code: str | None = None
    message: str = ""
    usage: Usage = field(default_factory=Usage)
    timings: Timings | None = None
    ttft_ms: float | None = None
    total_ms: float = 0.0
    reasoning_tokens: int = 0
    parts: Parts = field(default_factory=Parts)


Update = Queued | Started | Text | Parsed | Ended


def is_urgent(updates: Sequence[Update]) -> bool:
    """Whether a client has waited for these. That a worker has begun is told with its first tokens, which
    follow at once where anybody could tell the difference."""
    return not isinstance(updates[-1], Started)
