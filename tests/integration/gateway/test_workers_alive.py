"""How many workers a model has, with real workers that come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from broker import jetstream, subjects
from broker.jobs import publish_job
from gateway import pipeline, workers_alive
from tests.integration.broker.samples import make_job
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import configured, edge, until, worker

RETIRED_S = 0.5


def alive(model: str) -> float | None:
    return REGISTRY.get_sample_value("headrace_workers_alive", {"model": model})


async def test_a_retired_model_is_shown_until_its_queues_are_empty_and_its_time_is_up(
    nats_server: NatsServer, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(workers_alive, "LOOK_S", 0.05)
    monkeypatch.setattr(workers_alive, "RETIRED_S", RETIRED_S)
    monkeypatch.setattr(pipeline, "GATEWAY_INTERVAL_S", 0.05)
    config = configured(nats_server, redis_server)
    async with edge(config, tmp_path) as here:
        async with worker(config):
            await until(lambda: here.pipeline.ready()[0])
            (card,) = here.pipeline.models()
            assert alive(card.name) == 1
            await asyncio.sleep(2 * RETIRED_S)
            assert alive(card.name) == 1
        job = make_job(model=card.token)
        await publish_job(here.broker, job)
        await until(lambda: alive(card.name) == 0)
        await asyncio.sleep(2 * RETIRED_S)
        assert alive(card.name) == 0, "somebody waits for it"
        await jetstream.purge(here.broker, subjects.JOBS, subjects.jobs_of_model(card.token))
        await until(lambda: alive(card.name) is None)
        async with worker(config):
            await until(lambda: alive(card.name) == 1)
