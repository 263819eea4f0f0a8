"""The seam between the API surfaces and the pipeline: a checked request in, updates of its response out.

A surface (Responses, chat completions, the simple chat) parses its own JSON into a ``Generation`` and
turns ``Update`` values into its own events. Neither side knows the other's wire format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gateway.cache_key import CacheWish
from schemas.ids import ResponseId, TenantId
from schemas.job import Priority
from schemas.quota import UNLIMITED, Quota
from schemas.reply import FinishReason, Timings, TokenLogprobs, Usage
from schemas.sampling import Sampling

Role = Literal["system", "developer", "user", "assistant", "tool"]
Api = Literal["responses", "chat", "completions", "simple"]
Outcome = Literal["completed", "incomplete", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Generation:
    """A request that passed every check which needs no other part.

    ``messages``: this turn's, with the system message first if there is one; earlier turns come from
    ``conversation`` or ``previous_response_id`` (never both). ``sampling.max_tokens`` is 0-free: where
    the client gave none, ``max_tokens_given`` is False and the pipeline fits it to the model.
    ``echo``: JSON text of the request's fields which the response object repeats. ``idempotency_key``: a
    request that repeats it is given the response to the first. ``cache``: whether the answer may be shared.
    """

    api: Api
    tenant: TenantId
    model: str  # empty: the default model
    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    max_tokens_given: bool = True
    stop: tuple[str, ...] = ()
    conversation: str | None = None
    previous_response_id: ResponseId | None = None
    priority: Priority = "interactive"
    deadline_s: float | None = None
    store: bool = True
    echo: str = "{}"
    idempotency_key: str | None = None
    traceparent: str | None = None
    quota: Quota = UNLIMITED
    cache: CacheWish = "auto"
    received_unix_ms: float = 0.0  # when the request's bytes were here; edge time counts from it


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has the response."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text released by tokens ``first_token …< end_token`` (positions in the completion, from 0).
    ``end_token`` makes the cursor: see ``gateway/cursor.py``. Empty when only ``logprobs`` are news."""

    text: str
    first_token: int
    end_token: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The one terminal update. ``total``: tokens of the completion that count. ``timings`` are the
    worker's, None where none has told any (a stop string, a cancel: ``usage.cached_tokens`` is not known
    then, either); ``edge_ms`` is request received to job stored (None on a gateway that did not accept it),
    ``ttft_ms`` request received to first text."""

    outcome: Outcome
    total: int
    reason: FinishReason | Literal["cancelled", "deadline"] | None = None
    code: str | None = None
    message: str = ""
    usage: Usage = field(default_factory=Usage)
    timings: Timings | None = None
    edge_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float = 0.0


Update = Started | Text | Ended
