"""The job: the durable request message of a response, and the dead letter it may become.

Version rules, for every message of this package: a new field has a default, an unknown field is
ignored, a field never changes its meaning. ``tests/unit/schemas`` holds the bytes of each message as
they were first written; those bytes must decode for ever.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.ids import (
    RESPONSE_PATTERN,
    TENANT_PATTERN,
    TOKEN_PATTERN,
    GatewayId,
    ModelToken,
    ResponseId,
    SessionToken,
    TenantId,
)
from schemas.sampling import Sampling, Vocab

Priority = Literal["interactive", "standard", "batch"]  # the queue's class
Lane = Literal["fair", "over"]  # over: what a tenant sends above its share
PRIORITIES: tuple[Priority, ...] = ("interactive", "standard", "batch")
Memory = Literal["none", "on", "unavailable"]  # of a conversation: not asked for, kept, Redis is away
CacheStatus = Literal["none", "miss", "hit", "joined"]  # none: no other answer was looked for
LANES: tuple[Lane, ...] = ("fair", "over")

CODEC = "msgpack;v=1"  # value of the header Hr-Codec


class ToolCall(msgspec.Struct, frozen=True, array_like=True):
    """``arguments`` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a chat. ``tool_call_id``: whose output it is. ``reasoning``: what led to it."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""


class OutputShape(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the completion's text is read (``gateway/output``); words that a gateway does not know mean text.
    ``tool_format``: hermes, llama, mistral, pythonic; ``list`` and ``arguments`` where a schema forces
    calls, or the one call. ``tools``: each one's name, and which of its parameters are strings.
    ``thinking``: the model may begin with reasoning between tags (``tagged``, ``bracketed``), or the prompt
    has begun it (``begun``). ``one_call``: no more than one is shown."""

    tool_format: str = ""
    tools: tuple[tuple[str, tuple[str, ...]], ...] = ()
    thinking: str = ""
    one_call: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the job came to its model. ``requested``: the model that the client named, empty for none.
    ``by``: name, default, alias, auto or fallback; ``reason``: for people."""

    requested: str = ""
    by: str = "name"
    reason: str = ""


class Presentation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What any gateway needs to show this response exactly as the first one would.

    ``stop``: stop strings, matched on text by gateways. ``echo``: JSON text of the request's fields that
    the API repeats in its response object (metadata, instructions, temperature, …).
    ``conversation``: the client's name for it; ``user_text``: this turn's input, kept so that a turn
    whose gateway died can be folded into the conversation from the job and its reply log; ``input`` is
    the same as (role, content) where it is more than one user message, and ``user_text`` is empty then.
    ``said`` is that, where messages are more than role and content.
    ``memory``: whether the conversation was remembered when the job was made; ``cache``: whether an answer,
    or an identical response in flight, was found then. ``shape``: None where the completion is nothing but
    text. ``rendering``: of the tools and options that the chat template was given.
    ``route``: None in jobs of versions that did not tell.
    """

    api: Literal["responses", "chat", "completions", "simple"]
    stop: tuple[str, ...] = ()
    echo: str = "{}"
    conversation: str | None = None
    previous_response_id: str | None = None
    user_text: str = ""
    store: bool = True
    input: tuple[tuple[str, str], ...] = ()
    memory: Memory = "none"
    said: tuple[Message, ...] = ()
    shape: OutputShape | None = None
    rendering: str = ""
    route: Route | None = None
    cache: CacheStatus = "none"


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="job"):
    """``prompt_ids``: the whole prompt, encoded once, at the edge. Times are unix milliseconds.
    ``request_digest``: of what the client asked, where it gave an idempotency key. ``held``: stored where no
    worker pulls, because its tokens come from elsewhere (broker/REPLYLOG.md, rule 9). ``received_unix_ms``:
    when the request was here (0: not told), and ``edge_ms`` from then until this job was sent, both on the
    gateway's clock.
    Everything that becomes part of a subject is checked as it is decoded."""

    response: Annotated[ResponseId, Meta(pattern=RESPONSE_PATTERN)]
    tenant: Annotated[TenantId, Meta(pattern=TENANT_PATTERN)]
    session: Annotated[SessionToken, Meta(pattern=TOKEN_PATTERN)]
    gateway: Annotated[GatewayId, Meta(pattern=TOKEN_PATTERN)]  # whose reply prefix the log stands under
    model: Annotated[ModelToken, Meta(pattern=TOKEN_PATTERN)]
    model_name: str  # as it is served; what the client asked for is in ``presentation.route``
    priority: Priority = "interactive"
    lane: Lane = "fair"
    prompt_ids: tuple[Vocab, ...]
    sampling: Sampling
    presentation: Presentation
    created_unix_ms: int
    deadline_unix_ms: int
    cache_salt: Annotated[str, Meta(max_length=64)] | None = None
    traceparent: str | None = None
    replay_of: ResponseId | None = None
    request_digest: str = ""
    held: bool = False
    received_unix_ms: float = 0.0
    edge_ms: float = 0.0


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="dead"):
    """``job`` is the job's bytes as found (they may not decode). ``history``: one line per attempt."""

    response: ResponseId
    code: str
    message: str
    job: bytes
    job_subject: str
    history: tuple[str, ...] = ()
    died_unix_ms: int = 0
