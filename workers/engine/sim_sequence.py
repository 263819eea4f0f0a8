"""What the simulated engine says, as a pure function: the next token is a hash of every token before it.

Prompt, completion and seed all go into the hash, so one token lost, repeated, reordered or continued from
the wrong place changes everything behind it. A prompt may dictate the answer instead (``dictated``), so that
one can have tool calls or reasoning in it. ``expected_completion`` is the whole answer at once, for
whoever checks a stream. Must not know time, batches or asyncio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from schemas.reply import FinishReason, TokenLogprobs
from schemas.sampling import Sampling
from workers.engine.sim_words import (
    COMMON_WORDS,
    COMPOUND_WORDS,
    EOS_ID,
    FIRST_SPECIAL_ID,
    FIRST_WORD_ID,
    SAY_ID,
    START_ID,
    VOCAB_SIZE,
)

_MASK = (1 << 64) - 1
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3  # FNV-1a, over tokens instead of bytes
_FIRST_COMPOUND_ID = FIRST_WORD_ID + len(COMMON_WORDS)

# Shares of a hundred: the rest are compound words. Byte tokens have the byte's value as id.
_COMMON, _PUNCTUATION, _CHARACTER = 54, 62, 65
_PUNCTUATION_IDS = tuple(b".,,.;!?\n")

# A character of several bytes is several tokens, so that streams hold half characters. Where in a
# character the text stands, and which byte may come next: any continuation byte in FREE, else the given.
_WHOLE, _FREE_1, _FREE_2, _EMOJI_2, _EMOJI_3 = range(5)
_LEAD_BYTES = {0xC3: _FREE_1, **dict.fromkeys(range(0xE4, 0xEA), _FREE_2), 0xF0: _EMOJI_2}  # é 中 😀
_LEADS = tuple(_LEAD_BYTES)
_AFTER = (_WHOLE, _WHOLE, _FREE_1, _EMOJI_3, _FREE_1)
_FIXED_BYTE = {_EMOJI_2: 0x9F, _EMOJI_3: 0x98}


class SimState(NamedTuple):
    """``digest``: rolling hash of all tokens so far. ``character``: where in a character they end."""

    digest: int
    character: int = _WHOLE


def start_state(prompt_ids: Iterable[int], seed: int | None) -> SimState:
    digest = _FNV_OFFSET if seed is None else _mix(seed & _MASK)
    for token in prompt_ids:
        digest = ((digest ^ token) * _FNV_PRIME) & _MASK
    return SimState(digest)


def dictated(prompt_ids: Sequence[int]) -> Sequence[int] | None:
    """What the prompt's last message says that is to be answered: all of it behind ``<|say|>``. None where it
    says nothing of the kind."""
    if SAY_ID not in prompt_ids:
        return None
    answer = _rindex(prompt_ids, START_ID, len(prompt_ids))
    message = _rindex(prompt_ids, START_ID, answer)
    said = _rindex(prompt_ids, SAY_ID, answer)
    if not 0 <= message < said:
        return None
    end = next((i for i in range(said + 1, len(prompt_ids)) if prompt_ids[i] >= FIRST_SPECIAL_ID), None)
    return prompt_ids[said + 1 : end]


def _rindex(ids: Sequence[int], wanted: int, end: int) -> int:
    return next((i for i in range(end - 1, -1, -1) if ids[i] == wanted), -1)


def next_state(state: SimState, token: int) -> SimState:
    digest, character = state
    character = _AFTER[character] if character else _LEAD_BYTES.get(token, _WHOLE)
    return SimState(((digest ^ token) * _FNV_PRIME) & _MASK, character)


def next_token(state: SimState, mean_output_tokens: int, *, split: bool = True) -> int:
    """The token after ``state``; ``EOS_ID`` once in ``mean_output_tokens`` (0: never), and never inside
    a character. ``split``: some characters are several tokens."""
    digest, character = state
    choice = _mix(digest)
    if character:
        return _FIXED_BYTE.get(character) or 0x80 + choice % 64
    if mean_output_tokens and (choice >> 32) % mean_output_tokens == 0:
        return EOS_ID
    return _content_token(choice, split)


def logprobs_of(state: SimState, token: int, alternatives: int) -> TokenLogprobs:
    """Made up, but always the same; the chosen token first among the alternatives."""
    value = _mix(state.digest ^ 0x5DEECE66D)
    chosen = -(value % 1000) / 1000
    top = [(token, chosen)]
    top += [((token + step * 7) % VOCAB_SIZE, chosen - step / 8) for step in range(1, alternatives)]
    return TokenLogprobs(chosen, tuple(top[:alternatives]))


def expected_completion(
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    mean_output_tokens: int,
    max_model_len: int,
    split: bool = True,
) -> tuple[list[int], FinishReason]:
    """What an engine with this configuration answers, whoever was killed on the way."""
    budget = min(sampling.max_tokens, max_model_len - len(prompt_ids))
    said = dictated(prompt_ids)
    if said is not None:
        return list(said[:budget]), "stop" if len(said) < budget else "length"
    state = start_state(prompt_ids, sampling.seed)
    ids: list[int] = []
    while len(ids) < budget:
        token = choose(state, len(ids), sampling, mean_output_tokens, split=split)
        if is_end(token, len(ids), sampling):
            return ids, "stop"
        ids.append(token)
        state = next_state(state, token)
    return ids, "length"


def choose(
    state: SimState, position: int, sampling: Sampling, mean_output_tokens: int, *, split: bool = True
) -> int:
    """The token at ``position`` of a completion, the end token included."""
    endless = sampling.ignore_eos or position < sampling.min_tokens
    return next_token(state, 0 if endless else mean_output_tokens, split=split)


def is_end(token: int, position: int, sampling: Sampling) -> bool:
    return token == EOS_ID or (token in sampling.stop_token_ids and position >= sampling.min_tokens)


def _content_token(choice: int, split: bool) -> int:
    share, pick = choice % 100, choice // 100
    if share < _COMMON:
        return FIRST_WORD_ID + pick % len(COMMON_WORDS)
    if share < _PUNCTUATION:
        return _PUNCTUATION_IDS[pick % len(_PUNCTUATION_IDS)]
    if share < _CHARACTER and split:
        return _LEADS[pick % len(_LEADS)]
    return _FIRST_COMPOUND_ID + pick % len(COMPOUND_WORDS)


def _mix(value: int) -> int:
    """Finalizer of MurmurHash3: every bit of ``value`` moves every bit of the result."""
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & _MASK
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & _MASK
    return value ^ (value >> 33)
