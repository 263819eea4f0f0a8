"""One observed system for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.observe.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    running = World(tmp_path_factory.mktemp("observed"))
    yield running
    running.end()
