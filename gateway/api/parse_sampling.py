"""The sampling fields that all APIs share, bounded as ``schemas.sampling`` bounds them.

Surfaces inherit ``SamplingFields`` and name their own limit of tokens; nothing else builds a ``Sampling``
from what a client sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.cache_key import CacheWish
from schemas.errors import HeadraceError
from schemas.sampling import MAX_TOKENS_CEILING, Sampling, StructuredOutput, Vocab

MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1024
MAX_ALLOWED_TOKEN_IDS = 1 << 16
MAX_BAD_WORDS = 64  # of 256 characters: no more than ``MAX_TEXT_BYTES`` in all

StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)]
TokenLimit = Annotated[int, Meta(ge=1, le=MAX_TOKENS_CEILING)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
Label = Annotated[str, Meta(max_length=256)]  # names a client gives: user, conversation, …
IdempotencyKey = Annotated[str, Meta(min_length=1, max_length=256)]


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's fields, and vLLM's under its own names. ``null`` is the same as leaving a field out."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stop | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=MAX_LOGIT_BIASES)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 20)] | None = None  # 0, and vLLM's older -1: all
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS_CEILING)] | None = None
    stop_token_ids: Annotated[list[Vocab], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    bad_words: Annotated[list[StopString], Meta(max_length=MAX_BAD_WORDS)] | None = None
    allowed_token_ids: Annotated[list[Vocab], Meta(min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS)] | None = (
        None
    )
    cache: CacheWish | None = None  # ours: whether the answer may be one that was given before

    def sampling(
        self, max_tokens: int, *, logprobs: int | None = None, structured: StructuredOutput | None = None
    ) -> Sampling:
        """Raises ``invalid_value`` and ``invalid_token_id``. Whether an id is in the model's vocabulary
        is checked where the model is known."""
        min_tokens = self.min_tokens or 0
        if min_tokens > max_tokens:
            problem = f"min_tokens must be at most the limit of tokens, {max_tokens}."
            raise HeadraceError("invalid_value", problem, param="min_tokens")
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=max(0, self.top_k or 0),
            min_p=_or(self.min_p, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            seed=self.seed,
            logprobs=logprobs,
            logit_bias=_token_biases(self.logit_bias) if self.logit_bias else None,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            bad_words=tuple(self.bad_words or ()),
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            structured=structured,
        )

    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _token_biases(given: Mapping[str, float]) -> dict[Vocab, float]:
    biases: dict[Vocab, float] = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdigit() and len(name) <= 10 and int(name) < 1 << 31):
            raise HeadraceError(
                "invalid_token_id", f"logit_bias: {name[:80]!r} is not a token id.", param="logit_bias"
            )
        biases[int(name)] = float(bias)
    return biases
