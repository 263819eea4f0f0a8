"""What workers and gateways tell about themselves in the KV bucket ``hr_workers``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.ids import ModelToken, WorkerId

WorkerState = Literal["ready", "draining"]


class WorkerCard(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="worker"
):
    """Refreshed every ``interval_s``, the worker's own setting; older than three intervals means dead.
    ``tokenizer`` is the object name in ``hr_tokenizers``; the limits let a gateway refuse at once what
    the engine would refuse later. ``structured_output``: the engine can follow a schema or grammar."""

    worker: WorkerId
    model: ModelToken
    model_name: str
    revision: str
    engine: str
    state: WorkerState
    slots: int
    running: int = 0
    waiting: int = 0
    tokens_per_s: float = 0.0
    kv_cache_usage: float = 0.0  # 0 … 1
    max_model_len: int  # tokens, prompt and completion together
    vocab_size: int
    tokenizer: str
    started_unix_ms: int = 0
    seen_unix_ms: int = 0
    host: str = ""
    pid: int = 0
    version: str = ""
    interval_s: Annotated[float, Meta(gt=0, le=15)] = 2.0
    structured_output: bool = False
