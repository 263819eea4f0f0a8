"""One worker and one gateway for the tests that only use them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, Process, gateway, worker


@pytest.fixture(scope="module")
def sim_worker(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """Every response runs to its limit of tokens, 5 ms a token."""
    folder = tmp_path_factory.mktemp("worker")
    with worker(
        shared_nats_server, shared_redis_server, folder, inter_token_ms=5, mean_output_tokens=0, slots=64
    ) as running:
        yield running


@pytest.fixture(scope="module")
def served(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    sim_worker: Process,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """A gateway that answers; it gives up on a response half a second after its client has gone."""
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(
        shared_nats_server,
        shared_redis_server,
        folder,
        disconnect_grace_s=0.5,
        max_responses_per_connection=8,
    ) as running:
        yield running
        assert running.running, running.output
