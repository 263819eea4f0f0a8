"""The models that live workers serve, and the tokenizer of each."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.ids import ModelToken


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model with at least one live worker (``workers`` is 0 for one that had some)."""

    name: str
    token: ModelToken
    revision: str
    max_model_len: int
    vocab_size: int
    tokenizer: str
    workers: int
    slots: int
    running: int
    waiting: int
    created_unix_ms: int
