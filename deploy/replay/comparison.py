"""An original and its replay side by side. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from deploy.replay.account import Account

ALIKE = 0.05  # a time that differs by less is neither faster nor slower

Answer = Literal["same", "continues", "different", "unknown"]
Speed = Literal["faster", "slower", "alike"]


class Comparison(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``answer``: ``continues`` where the original was cut off at ``token`` and all before is the same;
    ``different`` from ``token`` on, counted from 0 (from ``character`` on, where the two were written with
    different tokenizers); ``unknown`` where nothing of the original is kept. ``ttft`` and ``total``: of the
    replay, against the original."""

    answer: Answer
    token: int | None = None
    character: int | None = None
    ttft: Speed | None = None
    total: Speed | None = None


def compare(original: Account | None, replay: Account, *, same_tokenizer: bool) -> Comparison:
    if original is None:
        return Comparison(answer="unknown")
    before: Sequence[object] = original.ids if same_tokenizer else original.text
    after: Sequence[object] = replay.ids if same_tokenizer else replay.text
    answer: Answer = "same"
    at = first_difference(before, after)
    if at is not None:
        answer = "continues" if at == len(before) and original.is_cut else "different"
    generated = original.attempts > 0  # else its times are those of another response, or of the cache
    return Comparison(
        answer=answer,
        token=at if same_tokenizer else None,
        character=None if same_tokenizer else at,
        ttft=speed(original.ttft_ms, replay.ttft_ms) if generated else None,
        total=speed(original.total_ms, replay.total_ms) if generated and not original.is_cut else None,
    )


def first_difference(before: Sequence[object], after: Sequence[object]) -> int | None:
    """Where they part; the length of the shorter one where that is the beginning of the other."""
    for at, (one, other) in enumerate(zip(before, after, strict=False)):
        if one != other:
            return at
    return None if len(before) == len(after) else min(len(before), len(after))


def speed(before_ms: float | None, after_ms: float | None) -> Speed | None:
    if before_ms is None or after_ms is None:
        return None
    if abs(after_ms - before_ms) <= ALIKE * before_ms:
        return "alike"
    return "faster" if after_ms < before_ms else "slower"
