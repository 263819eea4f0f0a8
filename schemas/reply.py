"""The messages of a response's reply log.

``R.f`` carries fences and closings (Started, Handoff, Joined, Parted, Closed), ``R.t`` carries tokens and the
writer's terminals (Tokens, Finished, Failed). The rules that give them meaning are in ``broker/replylog``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from schemas.ids import Fence, ResponseId, WorkerId

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
CloseReason = Literal["cancelled", "deadline", "stop", "refused", "completed"]


DELETED = "deleted"  # code of the Closed of a response that its client has deleted


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position: of the chosen token, and of the top alternatives by id."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the engine's prefix cache
    completion_tokens: int = 0


class Timings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Milliseconds of the attempt that ended the response, on the worker's clock.
    ``queue_ms``: job stored to job pulled. ``engine_queue_ms``: submitted to scheduled.
    ``prefill_ms``: scheduled to first token. ``decode_ms``: first token to last."""

    queue_ms: float = 0.0
    engine_queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    pass


class Started(_Message, frozen=True, tag="started"):
    """A writer's claim. The stream sequence of this message, once acked, is the writer's fence.
    ``ack_subject`` is the job delivery it works on: whoever finds the writer dead naks it there.
    ``delivered`` is JetStream's delivery count: shown, never trusted. ``queued_unix_ms``: when the job was
    stored, on the store's clock (``pulled_unix_ms`` is the worker's)."""

    attempt: int  # ordinal of this Started in the log, from 1
    worker: WorkerId
    ack_subject: str = ""
    delivered: int = 0
    pulled_unix_ms: int = 0
    queued_unix_ms: float = 0.0


class Handoff(_Message, frozen=True, tag="handoff"):
    """The writer with this fence stops of its own will; the next fence is not a failed attempt."""

    fence: Fence


class Joined(_Message, frozen=True, tag="joined"):
    """This response follows the log of an identical one in flight: its tokens are that one's."""

    leader: ResponseId


class Parted(_Message, frozen=True, tag="parted"):
    """This response follows no other any more. ``ids``: its completion so far, behind which a writer of its
    own begins."""

    ids: tuple[int, ...]


class Closed(_Message, frozen=True, tag="closed"):
    """Ends a response from outside its writer. ``total``: tokens that count (None: all that the log
    holds before this message); ``ids``: the whole completion where no writer of this log produced it;
    ``finish``: why it ended, where it is complete."""

    reason: CloseReason
    code: str | None = None
    message: str = ""
    total: int | None = None
    ids: tuple[int, ...] | None = None
    usage: Usage | None = None
    finish: FinishReason | None = None


class Tokens(_Message, frozen=True, tag="tokens"):
    """``ids`` stand at positions ``offset …`` of the completion, counted from 0 over all writers."""

    fence: Fence
    offset: int
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None


class Finished(_Message, frozen=True, tag="finished"):
    """The writer's good end. ``ids`` repeats the whole completion, so that a reader with a gap needs
    nothing else. ``stop_token``: the token that ended it, which is not part of ``ids``."""

    fence: Fence
    total: int
    reason: FinishReason
    ids: tuple[int, ...]
    usage: Usage
    timings: Timings = Timings()
    stop_token: int | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None


class Failed(_Message, frozen=True, tag="failed"):
    """The writer's bad end: ``code`` is one of ``schemas.errors``."""

    fence: Fence
    code: str
    message: str
    total: int = 0


FenceMessage = Started | Handoff | Joined | Parted | Closed
TokenMessage = Tokens | Finished | Failed
ReplyMessage = FenceMessage | TokenMessage
