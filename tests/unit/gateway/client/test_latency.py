"""The parts of an answer's time add up to what its client measured."""

from __future__ import annotations

import pytest

from gateway.client.latency import PARTS, latency_parts

TOLD = {"edge": 3, "queue": 40, "prefill": 55, "decode": 400, "reconnect": 120, "transport": 2}


def test_what_is_none_of_the_services_is_the_network() -> None:
    timings = {f"{part}_ms": spent for part, spent in TOLD.items()} | {"total_ms": 620, "ttft_ms": 100}
    parts = latency_parts({"timings": timings}, 700)
    assert parts == {**TOLD, "network": 80}
    assert tuple(TOLD) == PARTS


@pytest.mark.parametrize("response", [{}, {"timings": None}])
def test_a_gateway_that_tells_nothing(response: dict[str, object]) -> None:
    assert latency_parts(response, 700) == {}
