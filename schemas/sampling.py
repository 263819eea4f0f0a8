"""Sampling parameters as they travel and as an engine takes them.

Every number is bounded here, because a mistyped or oversized field kills the input thread of vLLM's
engine core without a sign (requests hang, health checks pass). Decoding validates; nothing else may
build these from outside input.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

MAX_TOKENS_CEILING = 1 << 20
# Of a grammar in any form, or of all bad words. Grammars are compiled by a few threads of the engine core
# that no abort frees, and all others wait behind: a list of choices of 600 KB took more than 40 s.
MAX_TEXT_BYTES = 64 << 10
Vocab = Annotated[int, Meta(ge=0, lt=1 << 31)]  # a token id; the worker also checks it against the model


class StructuredOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one is set. ``json_schema`` is JSON text, ``grammar`` is EBNF."""

    json_schema: str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """vLLM's meanings (docs: ``SamplingParams``). ``max_tokens`` and ``min_tokens`` count generated
    tokens over the whole response, whichever worker makes them. ``logprobs`` is how many alternatives
    per token, 0 for the chosen one only, None for no log probabilities at all."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS_CEILING)]
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS_CEILING)] = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] = 0  # 0: all
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logit_bias: dict[Vocab, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stop_token_ids: tuple[Vocab, ...] = ()
    ignore_eos: bool = False
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[Vocab, ...] | None = None
    structured: StructuredOutput | None = None
