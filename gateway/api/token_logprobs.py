"""Log probabilities as both OpenAI APIs show them, as JSON text. Must not know which API asks.

Big ones are the gateway's heaviest work: 4,096 tokens with 20 alternatives are 4 MB of JSON. So a token is
spelled once per model, a list is encoded once however many events repeat it, and what is long is encoded in
a thread (``off_loop``).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from gateway.generation import Ended, Queued, Started, Update
from gateway.live import Live
from schemas.ids import ModelToken
from schemas.reply import TokenLogprobs

LOWEST = -9999.0  # JSON has no infinity; vLLM's servers write this number too
NONE = msgspec.Raw(b"[]")
MAX_MODELS = 16  # whose spellings are kept: at most some 40 MB each, of the tokens that were shown
MANY = 2_000  # log probabilities: encoding so many takes about a millisecond

T = TypeVar("T")


class Spelling(NamedTuple):
    """How tokens of one model read by themselves; half a character shows as U+FFFD in ``token``, whole in
    ``bytes``. ``known``: the JSON text of each that was asked for, shared by the model's responses."""

    raw: Callable[[int], bytes]
    known: dict[int, str]

    def of(self, token_id: int) -> str:
        found = self.known.get(token_id)
        return self._spell(token_id) if found is None else found

    def _spell(self, token_id: int) -> str:
        raw = self.raw(token_id)
        token = msgspec.json.encode(raw.decode(errors="replace")).decode()
        spelled = f'"token":{token},"bytes":{msgspec.json.encode(list(raw)).decode()},"logprob":'
        self.known[token_id] = spelled
        return spelled


def spelled_as_ids() -> Spelling:
    """As vLLM's ``return_tokens_as_token_ids`` has it: no two tokens look alike."""
    return Spelling(lambda token_id: b"token_id:%d" % token_id, {})


class Spellings:
    """Of all models; beyond ``MAX_MODELS`` all are forgotten and begun anew."""

    def __init__(self) -> None:
        self._of_model: dict[ModelToken, dict[int, str]] = {}

    def of(self, live: Live) -> Spelling:
        known = self._of_model.get(live.job.model)
        if known is None:
            if len(self._of_model) >= MAX_MODELS:
                self._of_model.clear()
            known = self._of_model[live.job.model] = {}
        return Spelling(live.token_bytes, known)


def show(
    token_ids: Iterable[int], logprobs: Iterable[TokenLogprobs] | None, spelling: Spelling
) -> msgspec.Raw:
    """A JSON list of ``openai.types`` ``Logprob`` objects; empty when the engine was not asked for any."""
    of, number = spelling.of, _number
    shown = [
        f"{{{of(token_id)}{number(at.chosen)},"
        f'"top_logprobs":[{",".join([f"{{{of(i)}{number(p)}}}" for i, p in at.top])}]}}'
        for token_id, at in zip(token_ids, logprobs or (), strict=False)
    ]
    return msgspec.Raw(f"[{','.join(shown)}]".encode()) if shown else NONE


async def off_loop(live: Live, updates: Sequence[Update], work: Callable[[], T]) -> T:
    """``work`` shows these updates: in a thread if they come with many log probabilities. Whatever a
    reader was given changes no more, nor does a response that has ended."""
    return await asyncio.to_thread(work) if _weight(live, updates) >= MANY else work()


def _weight(live: Live, updates: Sequence[Update]) -> int:
    alternatives = live.job.sampling.logprobs
    if alternatives is None:
        return 0
    tokens = 0
    for update in updates:
        match update:
            case Started() | Queued():
                pass
            case Ended():
                tokens += update.total
            case _:
                tokens += len(update.token_ids)
    return tokens * (1 + alternatives)


def _number(logprob: float) -> str:
    return repr(max(LOWEST, logprob) if math.isfinite(logprob) else LOWEST)
