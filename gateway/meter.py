"""What the responses of this gateway add to the metrics, by model. Must not know how they come about."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Literal, get_args

from broker.histogram import StepTally
from broker.metrics import CACHED_PROMPT_TOKENS, GATEWAY, SAVED_TOKENS, STAGE_S
from broker.stages import PARTS, Parts
from gateway.generation import Ended, Outcome

HAND_OVER_S = 0.25


class Meter:
    """One response. ``tokens`` runs once for each message of the log."""

    __slots__ = ("_model", "_received_s", "_started", "_tokens_s")

    def __init__(self, model: str, received_unix_ms: float) -> None:
        self._model = _model(model)
        self._received_s = received_unix_ms / 1000
        self._tokens_s = 0.0  # when the last tokens came; 0: none yet
        self._started = False
        self._model.waiting.inc()

    def withdrawn(self) -> None:
        """It was not accepted after all; a worker may have begun it all the same."""
        (self._model.running if self._started else self._model.waiting).dec()

    def started(self) -> None:
        self._started = True
        self._model.waiting.dec()
        self._model.running.inc()

    def tokens(self, count: int) -> None:
        now_s, model = time.time(), self._model
        if self._tokens_s:
            model.inter_token_s.observe_many(max(0.0, now_s - self._tokens_s) / count, count)
        else:
            model.first_token_s.observe(max(0.0, now_s - self._received_s))
        self._tokens_s = now_s
        model.tokens += count
        if now_s >= model.hand_over_at_s:
            model.hand_over_at_s = now_s + HAND_OVER_S
            model.hand_over()

    def ended(self, end: Ended, saved_by: Literal["cache", "joined"] | None = None) -> None:
        """``saved_by``: where its tokens come from, if no engine worked for it."""
        (self._model.running if self._started else self._model.waiting).dec()
        self._model.hand_over()
        self._model.end_to_end_s.observe(max(0.0, time.time() - self._received_s))
        self._model.prompt_tokens.inc(end.usage.prompt_tokens)
        if saved_by is None:
            self._model.cached_prompt_tokens.inc(end.usage.cached_tokens)
        else:
            labels = {"model": self._model.name, "how": saved_by}
            SAVED_TOKENS.labels(**labels, kind="prompt").inc(end.usage.prompt_tokens)
            SAVED_TOKENS.labels(**labels, kind="completion").inc(end.usage.completion_tokens)
        if end.timings is not None:
            self._model.queue_wait_s.observe(end.timings.queue_ms / 1000)
        self._model.observe(end.parts)
        self._model.requests[end.outcome].inc()


def refused(model: str) -> None:
    """``model`` is one that is served; empty where the request named none of them."""
    GATEWAY.requests.labels(model=model, outcome="refused").inc()


class _Model:
    """The metrics of one model; looking a label up costs more than counting. What is counted for each message
    is handed over a few times a second: prometheus-client takes a lock for each value."""

    def __init__(self, name: str) -> None:
        self.name = name
        # all at once: a rate does not see the first of what was not there before
        self.requests = {o: GATEWAY.requests.labels(model=name, outcome=o) for o in get_args(Outcome)}
        self.first_token_s = GATEWAY.first_token_s.labels(model=name)
        self.inter_token_s = StepTally(GATEWAY.inter_token_s.labels(model=name))
        self.end_to_end_s = GATEWAY.end_to_end_s.labels(model=name)
        self.queue_wait_s = GATEWAY.queue_wait_s.labels(model=name)
        self.prompt_tokens = GATEWAY.prompt_tokens.labels(model=name)
        self.cached_prompt_tokens = CACHED_PROMPT_TOKENS.labels(model=name)
        self._completion_tokens = GATEWAY.completion_tokens.labels(model=name)
        self.running = GATEWAY.running.labels(model=name)
        self.waiting = GATEWAY.waiting.labels(model=name)
        self._stages = [(part, STAGE_S.labels(model=name, stage=part)) for part in PARTS]
        self.tokens = 0  # not handed over yet
        self.hand_over_at_s = 0.0

    def observe(self, parts: Parts) -> None:
        """Where a response's time went: of each part that it had."""
        for part, histogram in self._stages:
            if (spent_ms := parts.of(part)) > 0:
                histogram.observe(spent_ms / 1000)

    def hand_over(self) -> None:
        self._completion_tokens.inc(self.tokens)
        self.tokens = 0
        self.inter_token_s.hand_over()


@lru_cache(maxsize=256)
def _model(name: str) -> _Model:
    return _Model(name)
