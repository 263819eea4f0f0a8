"""What the clients say: texts of seeded words, or those of a file. Conversation k says the same for a seed,
however many processes share the conversations. Must not know how an API is asked."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploy.bench.distribution import whole
from deploy.bench.plan import Workload
from workers.engine.sim_words import COMMON_WORDS  # each is one token, with its space, to most models

_PIECE = 4096


@dataclass(frozen=True, slots=True)
class Turn:
    """``think_s``: the pause before it, from the end of the turn before."""

    text: str
    max_tokens: int
    think_s: float


class PromptLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a prompt file: a prompt, or the turns of a conversation."""

    prompt: str | None = None
    turns: list[str] | None = None
    max_tokens: int | None = None

    def texts(self) -> list[str]:
        if (self.prompt is None) == (not self.turns):
            raise ValueError("give prompt or turns")
        return self.turns or [self.prompt or ""]


class Scripts:
    """Raises ``ValueError`` where the prompt file cannot be read or says nothing."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload = workload
        self._seed = seed
        self._file = read_prompts(Path(workload.prompt_file)) if workload.prompt_file else []
        self._shared: list[str] = []
        self._sharing = random.Random(f"shared {seed}")

    def conversation(self, number: int) -> list[Turn]:
        rng = random.Random(f"{self._seed} {number}")
        if self._file:
            line = self._file[number % len(self._file)]
            return [self._turn(rng, text, line.max_tokens) for text in line.texts()]
        turns = whole(self._workload.turns, rng)
        return [self._turn(rng, self._words(rng, first=number == 0), None) for number in range(turns)]

    def _turn(self, rng: random.Random, text: str, max_tokens: int | None) -> Turn:
        asked = whole(self._workload.output_tokens, rng) if max_tokens is None else max_tokens
        return Turn(text, asked, self._workload.think_s.sample(rng))

    def _words(self, rng: random.Random, *, first: bool) -> str:
        length = whole(self._workload.prompt_tokens, rng)
        shared = round(length * self._workload.shared_prefix) if first else 0
        while len(self._shared) < shared:
            self._shared += self._sharing.choices(COMMON_WORDS, k=_PIECE)
        return " ".join([*self._shared[:shared], *rng.choices(COMMON_WORDS, k=length - shared)])


def read_prompts(path: Path) -> list[PromptLine]:
    """One JSON object a line. Raises ``ValueError`` naming the line."""
    lines: list[PromptLine] = []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    for number, text in enumerate(content.splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text, type=PromptLine)
            line.texts()
        except (ValueError, msgspec.DecodeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} has no prompts")
    return lines
