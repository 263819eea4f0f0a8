"""Which model answers a request: the names it may be asked by, the policy behind ``auto``, and who stands in
for a model that nobody serves. Pure: what is known about models and client comes in.

A model that was named never becomes another one unless the configuration says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.catalog import ModelCard
from schemas.config import Candidate

CHARACTERS_PER_TOKEN = 4  # English prose; a tokenizer is the model's own, which is yet to be chosen
BYTES_PER_TOKEN = 3  # of scripts whose characters take several bytes in UTF-8
SERVICE_MS = 5000.0  # how long a slot is taken, where nobody has measured it
QueueEstimate = Callable[[ModelCard], float]  # ms until a request that came now would begin


@dataclass(frozen=True, slots=True)
class Signals:
    """``rtt_ms`` None: not measured; it then limits nothing."""

    prompt_tokens: int
    rtt_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    card: ModelCard
    reason: str


def estimate_tokens(texts: Sequence[str]) -> int:
    """What a prompt of these texts takes, about: a token for 4 characters of ASCII text, and for 3 bytes of
    any other."""
    return sum(_estimate(text) for text in texts)


def _estimate(text: str) -> int:
    if text.isascii():
        return -(-len(text) // CHARACTERS_PER_TOKEN)
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def queue_of_card(card: ModelCard) -> float:
    """From what workers tell of themselves every few seconds: rough, and late."""
    ahead = card.running + card.waiting - card.slots + 1
    return max(0, ahead) * SERVICE_MS / max(1, card.slots)


def choose(
    candidates: Sequence[Candidate],
    alive: Mapping[str, ModelCard],
    signals: Signals,
    queue_ms: QueueEstimate,
) -> Choice | None:
    """The first candidate that has a worker and is within its limits; where none is, the last one that has a
    worker. None where none has."""
    passed: list[str] = []
    last: ModelCard | None = None
    for candidate in candidates:
        card = alive.get(candidate.model)
        why = "no worker" if card is None else next(_beyond(candidate, card, signals, queue_ms), None)
        if card is not None:
            last = card
            if why is None:
                return Choice(card, "; ".join(passed) if passed else "preferred")
        passed.append(f"{candidate.model}: {why}")
    return None if last is None else Choice(last, "; ".join([*passed, "none is within its limits"]))


def _beyond(
    candidate: Candidate, card: ModelCard, signals: Signals, queue_ms: QueueEstimate
) -> Iterator[str]:
    """The limits that speak against it, each with what was found."""
    tokens, rtt_ms = signals.prompt_tokens, signals.rtt_ms
    most = min(candidate.max_prompt_tokens or card.max_model_len, card.max_model_len)
    if tokens > most:
        yield f"prompt of about {tokens} tokens above {most}"
    if candidate.max_rtt_ms is not None and rtt_ms is not None and rtt_ms > candidate.max_rtt_ms:
        yield f"round trip {rtt_ms:.0f} ms above {candidate.max_rtt_ms:g}"
    if candidate.max_queue_ms is not None and (queue := queue_ms(card)) > candidate.max_queue_ms:
        yield f"queue {queue:.0f} ms above {candidate.max_queue_ms:g}"
