"""Completions objects: the whole answer, and the chunks of a stream. Pure.

Type: ``openai.types.Completion``, which is that of the chunks, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Literal

import msgspec

from gateway.api.chat_events import DONE, CompletionUsage, failure, finish_reason, usage
from gateway.api.choices import UsageTally, usage_so_far
from gateway.api.errors import http_body
from gateway.api.token_logprobs import LOWEST
from gateway.generation import Ended, Text, Update
from gateway.live import Live
from schemas.ids import ResponseId
from schemas.reply import TokenLogprobs

Spell = Callable[[int], str]  # a token by itself


class Logprobs(msgspec.Struct, frozen=True):
    """Lists with an entry for each token. ``text_offset``: where in the choice's text a token's begins."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: None = None


def completion_id(response: ResponseId) -> str:
    return "cmpl-" + response.removeprefix("resp_")


def completion(
    live: Live, choices: list[Choice], used: CompletionUsage | msgspec.UnsetType | None
) -> Completion:
    """``live``: the first of the responses; of one request they share their head."""
    return Completion(
        id=completion_id(live.response_id),
        created=live.created_unix_ms // 1000,
        model=live.model_name,
        choices=choices,
        usage=used,
    )


def choice(live: Live, index: int, before: str, spell: Spell | None) -> Choice:
    """Of a response that has ended well. ``before``: the prompt's text, if it is to be repeated. ``spell``:
    where log probabilities are asked for."""
    assert live.end is not None
    shown = None
    if spell is not None:
        shown = logprobs(live.ids, live.log.logprobs, live.released(0, len(live.ids)), len(before), spell)
    return Choice(index=index, text=before + live.text, logprobs=shown, finish_reason=finish_reason(live.end))


class CompletionChunks:
    """One choice's chunks; the last of all choices ends the stream. The first chunk is the first token's,
    with the prompt's text before it if that is to be repeated."""

    def __init__(
        self,
        first: Live,
        live: Live,
        index: int,
        *,
        before: str,
        spell: Spell | None,
        tally: UsageTally,
        include_usage: bool,
        continuous_usage: bool,
        structure: str,
    ) -> None:
        self._first = first
        self._live = live
        self._index = index
        self._before = before
        self._spell = spell
        self._tally = tally
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._structure = structure
        self._characters = len(before)  # of the choice's text so far

    def feed(self, update: Update) -> bytes:
        match update:
            case Text():
                return self._text(update) if update.text or update.logprobs else b""
            case Ended():
                return self._end(update)
            case _:
                return b""

    def _text(self, update: Text) -> bytes:
        shown = None
        if self._spell is not None:
            released = self._live.released(update.first_token, update.end_token)
            shown = logprobs(update.token_ids, update.logprobs or (), released, self._characters, self._spell)
        self._characters += len(update.text)
        text, self._before = self._before + update.text, ""
        return self._frame(Choice(index=self._index, text=text, logprobs=shown))

    def _end(self, end: Ended) -> bytes:
        reason = finish_reason(end)
        if reason is None:
            return b"data: " + http_body(failure(end, self._structure)) + b"\n\n" + DONE
        frames = self._frame(Choice(index=self._index, text=self._before, finish_reason=reason))
        used = self._tally.add(self._index, end)
        if used is None:
            return frames
        if self._include_usage:
            frames += _data(completion(self._first, [], usage(used)))
        return frames + DONE

    def _frame(self, choice: Choice) -> bytes:
        used: CompletionUsage | None = None
        if self._continuous_usage:
            used = usage(usage_so_far(self._live))
        return _data(completion(self._first, [choice], used if self._include_usage else msgspec.UNSET))


def logprobs(
    ids: Iterable[int], given: Iterable[TokenLogprobs], released: list[int], offset: int, spell: Spell
) -> Logprobs:
    """``released``: how many characters each token made; ``offset``: how many stand before them."""
    known = list(zip(ids, given, strict=False))
    offsets = list(accumulate(released, initial=offset))
    offsets += [offsets[-1]] * (len(known) - len(offsets))  # text that only the end released
    return Logprobs(
        text_offset=offsets[: len(known)],
        token_logprobs=[_finite(at.chosen) for _, at in known],
        tokens=[spell(token_id) for token_id, _ in known],
        top_logprobs=[_top(token_id, at, spell) for token_id, at in known],
    )


def _top(chosen: int, at: TokenLogprobs, spell: Spell) -> dict[str, float]:
    """The likeliest, and the one that was chosen. Where two are spelled alike, the likelier one stands."""
    entries = {spell(token_id): _finite(p) for token_id, p in reversed(at.top)}
    return {spell(chosen): _finite(at.chosen)} | dict(reversed(entries.items()))


def _finite(logprob: float) -> float:
    return max(LOWEST, logprob) if math.isfinite(logprob) else LOWEST


def _data(body: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
