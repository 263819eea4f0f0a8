"""Log probabilities as both OpenAI APIs show them. Must not know which API asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from schemas.reply import TokenLogprobs

LOWEST = -9999.0  # JSON has no infinity; vLLM's servers write this number too


class Spelling(NamedTuple):
    """How one token reads by itself; half a character shows as U+FFFD in ``text``, whole in ``raw``."""

    text: Callable[[int], str]
    raw: Callable[[int], bytes]


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


def show(
    token_ids: Iterable[int], logprobs: Iterable[TokenLogprobs] | None, spelling: Spelling
) -> list[TokenLogprob]:
    """Empty when the engine was not asked for log probabilities."""
    return [
        TokenLogprob(
            spelling.text(token_id),
            max(LOWEST, at.chosen),
            list(spelling.raw(token_id)),
            [TopLogprob(spelling.text(i), max(LOWEST, p), list(spelling.raw(i))) for i, p in at.top],
        )
        for token_id, at in zip(token_ids, logprobs or (), strict=False)
    ]
