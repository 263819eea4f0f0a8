"""Tokenizers are kept for as long as their models are remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from broker.connection import Broker
from broker.presence import Roster
from gateway.catalog import Catalog, tokenizer_cache
from schemas.config import Nats
from schemas.errors import HeadraceError
from schemas.ids import ModelToken, WorkerId
from schemas.presence import WorkerCard
from workers.engine.sim_tokenizer import write_tokenizer


class Announced(Roster):
    """A roster that is told who is there."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.cards: list[WorkerCard] = []

    def workers(self) -> list[WorkerCard]:
        return self.cards


def card(name: str, started_unix_ms: int) -> WorkerCard:
    return WorkerCard(
        worker=WorkerId(f"w-{name}"),
        model=ModelToken(name),
        model_name=name,
        revision="1",
        engine="sim",
        state="ready",
        tokenizer=name,
        max_model_len=4096,
        vocab_size=4096,
        slots=1,
        running=0,
        waiting=0,
        started_unix_ms=started_unix_ms,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_a_tokenizer_goes_with_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("gateway.catalog.MAX_MODELS", 1)
    folder, _ = write_tokenizer(tmp_path / "made", 4096)
    tokenizer_cache().mkdir()
    for name in ("old", "new"):
        (tokenizer_cache() / name).symlink_to(folder)
    broker = Broker(Nats(), "never connected")
    roster = Announced(broker)
    catalog = Catalog(broker, roster)
    roster.cards = [card("old", 1)]
    running = asyncio.create_task(catalog.run())
    await until(lambda: bool(catalog.models()) and not catalog.lacking())
    old = catalog.resolve("old")
    roster.cards = [card("new", 2)]
    roster._changed()
    await until(lambda: bool(catalog.models()) and not catalog.lacking())
    with pytest.raises(HeadraceError, match="model_not_found"):
        catalog.resolve("old")  # one is remembered, and that is the one with a worker
    assert not catalog.has_tokenizer(old)
    assert catalog.has_tokenizer(catalog.resolve("new"))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await catalog.close()


async def test_a_model_follows_schemas_where_all_its_workers_do() -> None:
    broker = Broker(Nats(), "never connected")
    roster = Announced(broker)
    catalog = Catalog(broker, roster)
    able = msgspec.structs.replace(card("m", 1), structured_output=True)
    other = msgspec.structs.replace(card("m", 2), worker=WorkerId("w-2"))
    for cards, follows in (([able], True), ([able, other], False), ([other, able], False), ([other], False)):
        roster.cards = cards
        roster._changed()
        assert catalog.resolve("m").structured_output is follows
