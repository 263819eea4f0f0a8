"""The models that workers serve, and the tokenizer of each, taken from the object store once.

Must not know requests. A model whose workers have all gone is remembered: asking for it is passing
trouble, asking for one that never was is the client's mistake.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from broker.connection import Broker
from broker.presence import Roster
from broker.tokenizers import fetch_tokenizer
from gateway.tokenizer import ChatTokenizer
from schemas.errors import HeadraceError
from schemas.ids import ModelToken
from schemas.presence import WorkerCard

log = logging.getLogger(__name__)

FRESH_S = 0.05  # how long what workers said is taken as it was; who comes and goes is seen at once
RETRY_S = 10.0  # a tokenizer that could be fetched and not be used is fetched again after so long
MAX_MODELS = 256  # remembered; beyond, those without workers are forgotten, the oldest first


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model and what serves it now (``workers`` 0: it had some). ``slots``, ``running`` and ``waiting``
    are sums over its ready workers; ``max_model_len`` is the least of theirs."""

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
    structured_output: bool = False  # all of its workers can follow a schema or a grammar


@dataclass(frozen=True, slots=True)
class _Loading:
    task: asyncio.Task[ChatTokenizer]
    began_s: float

    @property
    def failure(self) -> BaseException | None:
        """None: it is under way, or there."""
        if not self.task.done():
            return None
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception()

    @property
    def is_worth_another_try(self) -> bool:
        failure = self.failure
        if isinstance(failure, HeadraceError) and failure.code == "internal_error":
            return time.monotonic() - self.began_s > RETRY_S
        return failure is not None


class Catalog:
    def __init__(self, broker: Broker, roster: Roster, *, default_model: str = "") -> None:
        self._broker = broker
        self._roster = roster
        self._default = default_model
        self._known: dict[ModelToken, ModelCard] = {}
        self._loading: dict[str, _Loading] = {}  # by tokenizer name; kept when done, while a model has it
        self._models: list[ModelCard] = []
        self._fresh_until_s = 0.0
        self._changed = asyncio.Event()
        roster.on_change(self._workers_changed)

    async def run(self) -> None:
        """Get tokenizers as models appear, so that a first request need not wait. Never returns."""
        while True:
            self._changed.clear()
            models = self.models()
            self._forget_tokenizers()
            for card in models:
                try:
                    await self.tokenizer(card)
                except HeadraceError as error:
                    log.warning("no tokenizer for %s yet: %s", card.name, error)
            try:
                async with asyncio.timeout(1.0 if self.lacking() else 30.0):
                    await self._changed.wait()
            except TimeoutError:
                pass  # try again for those that are missing

    def models(self) -> list[ModelCard]:
        """Models with at least one ready worker, by name."""
        self._refresh()
        return self._models

    def workers(self) -> dict[str, int]:
        """How many are ready, by name of each model that is remembered."""
        self._refresh()
        alive: Counter[str] = Counter()  # two revisions of a model have one name
        for card in self._known.values():
            alive[card.name] += card.workers
        return alive

    def name_of(self, model: ModelToken) -> str:
        """The token itself where no worker of it was seen."""
        card = self._known.get(model)
        return model if card is None else card.name

    def lacking(self) -> list[str]:
        """Names of the models that are served and whose tokenizer is not here."""
        return [card.name for card in self.models() if not self.has_tokenizer(card)]

    def has_tokenizer(self, card: ModelCard) -> bool:
        loading = self._loading.get(card.tokenizer)
        return loading is not None and loading.task.done() and loading.failure is None

    def serving(self, name: str) -> ModelCard | None:
        """The model of this name or token that has a worker now; of two revisions, the newer."""
        found = [card for card in self.models() if name in (card.name, card.token)]
        return max(found, key=lambda card: card.created_unix_ms, default=None)

    def has_seen(self, model: ModelToken) -> bool:
        """It is served, or was."""
        self._refresh()
        return model in self._known

    def resolve(self, name: str) -> ModelCard:
        """``name``: a served name or a model token; empty for the default. Raises ``HeadraceError``:
        model_not_found, no_worker; that also of any name while no worker was seen yet: a gateway that has
        just begun does not know what there is."""
        wanted = name or self._default
        card = self.serving(wanted)
        alive = self.models()
        if not wanted:
            if not alive:
                raise HeadraceError("no_worker", "No model is being served right now: try again.")
            return alive[0]
        if card is not None:
            return card
        if any(wanted in (card.name, card.token) for card in self._known.values()):
            raise HeadraceError("no_worker", f"No worker serves {wanted!r} right now: try again.")
        if not self._known or not (alive or name):
            raise HeadraceError("no_worker", "No model is being served right now: try again.")
        served = ", ".join(repr(card.name) for card in alive) or "none"
        raise HeadraceError(
            "model_not_found", f"There is no model {wanted!r}; models served now: {served}.", param="model"
        )

    async def tokenizer(self, card: ModelCard) -> ChatTokenizer:
        """From memory, the cache folder, or the object store. Raises ``HeadraceError``."""
        return await self._tokenizer(card.tokenizer)

    async def tokenizer_of(self, model: ModelToken) -> ChatTokenizer:
        """Of a model that a stored job names; no worker may serve it any more. Raises ``HeadraceError``."""
        self._refresh()
        card = self._known.get(model)
        return await self._tokenizer(model if card is None else card.tokenizer)

    async def _tokenizer(self, name: str) -> ChatTokenizer:
        loading = self._loading.get(name)
        if loading is None or loading.is_worth_another_try:
            task = asyncio.create_task(self._load(name), name=f"tokenizer {name}")
            loading = self._loading[name] = _Loading(task, time.monotonic())
        return await asyncio.shield(loading.task)  # shared: one asker's cancellation is not the others'

    async def close(self) -> None:
        """End what is loading."""
        tasks = [loading.task for loading in self._loading.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget_tokenizers(self) -> None:
        """Those of models that are forgotten. One that is loading may have someone who waits for it."""
        wanted = {card.tokenizer for card in self._known.values()}
        for name, loading in list(self._loading.items()):
            if name not in wanted and loading.task.done():
                del self._loading[name]

    async def _load(self, name: str) -> ChatTokenizer:
        try:
            folder = await fetch_tokenizer(self._broker, name, tokenizer_cache())
        except OSError as error:
            log.error("tokenizer %s cannot be stored, set HEADRACE_CACHE_DIR: %s", name, error)
            raise HeadraceError(
                "internal_error", "The gateway cannot store the model's tokenizer: try again later."
            ) from error
        tokenizer = await asyncio.to_thread(ChatTokenizer.load, folder)
        log.info("tokenizer %s is loaded", name)
        return tokenizer

    def _workers_changed(self) -> None:
        self._fresh_until_s = 0.0
        self._changed.set()

    def _refresh(self) -> None:
        """A request asks several times, and each looks at every worker: of a thousand that is 2 ms."""
        now_s = time.monotonic()
        if now_s < self._fresh_until_s:
            return
        self._fresh_until_s = now_s + FRESH_S
        now: dict[ModelToken, ModelCard] = {}
        for worker in self._roster.workers():
            if worker.state == "ready":
                now[worker.model] = _join(now.get(worker.model), worker)
        for token, card in self._known.items():
            if token not in now:
                now[token] = replace(card, workers=0, slots=0, running=0, waiting=0)
        gone = sorted(
            (card for card in now.values() if not card.workers), key=lambda card: card.created_unix_ms
        )
        for card in gone[: max(0, len(now) - MAX_MODELS)]:
            del now[card.token]
        self._known = now
        served = (card for card in now.values() if card.workers)
        self._models = sorted(served, key=lambda card: (card.name, card.token))


def tokenizer_cache() -> Path:
    """``HEADRACE_CACHE_DIR``, else ``headrace`` in the user's cache (XDG base directory specification).
    Raises ``FileNotFoundError`` where that is in a home and this user has none."""
    try:
        if own := os.environ.get("HEADRACE_CACHE_DIR"):
            root = Path(own).expanduser()
        else:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error
    return root / "tokenizers"


def _join(card: ModelCard | None, worker: WorkerCard) -> ModelCard:
    if card is None:
        return ModelCard(
            name=worker.model_name,
            token=worker.model,
            revision=worker.revision,
            max_model_len=worker.max_model_len,
            vocab_size=worker.vocab_size,
            tokenizer=worker.tokenizer,
            workers=1,
            slots=worker.slots,
            running=worker.running,
            waiting=worker.waiting,
            created_unix_ms=worker.started_unix_ms,
            structured_output=worker.structured_output,
        )
    return replace(
        card,
        max_model_len=min(card.max_model_len, worker.max_model_len),
        workers=card.workers + 1,
        slots=card.slots + worker.slots,
        running=card.running + worker.running,
        waiting=card.waiting + worker.waiting,
        created_unix_ms=min(card.created_unix_ms, worker.started_unix_ms),
        structured_output=card.structured_output and worker.structured_output,
    )
