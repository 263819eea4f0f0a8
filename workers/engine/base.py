"""What a worker needs of an inference engine. Token ids in, token ids out; no text, no queue, no network.

An engine runs in the worker's process and event loop. Errors come in two kinds: a request's own
(``RequestEnd`` with a code) and the engine's (``failed()`` raises: the worker process exits and is
restarted, because an engine in doubt must not hold jobs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from schemas.ids import ResponseId
from schemas.reply import FinishReason, TokenLogprobs
from schemas.sampling import Sampling


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Known once the engine has started. ``slots``: requests that run at once. ``tokenizer_dir``: the
    folder whose tokenizer files gateways are given. ``eos_token_ids``: shown, the engine applies them."""

    model_name: str
    revision: str
    engine: str  # name and version, such as "vllm 0.32.0"
    slots: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    tokenizer_dir: Path
    structured_output: bool = False  # can be made to follow a schema or a grammar


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """``prior_ids``: completion tokens that an earlier writer of this response has emitted already. The
    engine continues after them and reports only what is new; ``sampling`` still counts the whole."""

    request_id: ResponseId
    prompt_ids: Sequence[int]
    sampling: Sampling
    prior_ids: Sequence[int] = ()
    priority: int = 0  # lower runs earlier
    cache_salt: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """``reason`` on a good end; ``code`` and ``message`` (of schemas.errors) on a bad one. Times are
    milliseconds on the engine's clock; ``cached_tokens`` are prompt tokens found in the prefix cache."""

    reason: FinishReason | None = None
    code: str | None = None
    message: str = ""
    stop_token: int | None = None
    cached_tokens: int = 0
    engine_queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class Delta(msgspec.Struct, frozen=True, gc=False):
    """New tokens of one request after one engine step (or several, merged). The stop token is not in
    ``ids``. ``end`` is set on the last delta of a request, which may carry no ids. A struct, because one is
    made for each token: 0.15 us, against 0.9 for a frozen dataclass."""

    request_id: ResponseId
    ids: Sequence[int] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    end: RequestEnd | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0  # 0 … 1


StepSink = Callable[[list[Delta]], None]  # called in the event loop, once an engine step; must not block


class EngineDead(Exception):
    """The engine cannot go on: it died, hangs, or did not start. The message is for the operator."""


class Engine(Protocol):
    async def start(self, on_step: StepSink) -> EngineInfo:
        """Load the model. Raises ``EngineDead`` with the reason if that fails."""
        ...

    def submit(self, request: EngineRequest) -> None:
        """Add a request to the batch; never blocks. A request the engine cannot take ends in a
        ``Delta`` whose ``end.code`` says why; one that is over already (budget spent by
        ``prior_ids``) ends with ``reason="length"``."""
        ...

    def abort(self, request_id: ResponseId) -> None:
        """Free the slot within a step. No delta of this request arrives after this call returns.
        Unknown ids are ignored."""
        ...

    def load(self) -> EngineLoad: ...

    async def failed(self) -> None:
        """Never returns while the engine is well; raises ``EngineDead`` when it died or hangs."""
        ...

    async def close(self) -> None:
        """Stop, and leave no process behind. Safe to call twice and after a failure."""
        ...
