"""The policy behind ``model: "auto"``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import ModelCard
from gateway.routing import Signals, choose, estimate_tokens, queue_of_card
from schemas.config import Candidate
from schemas.ids import ModelToken


def card(name: str, *, slots: int = 4, running: int = 0, waiting: int = 0) -> ModelCard:
    return ModelCard(
        name=name,
        token=ModelToken(name),
        revision="1",
        max_model_len=4096,
        vocab_size=100,
        tokenizer=name,
        workers=1,
        slots=slots,
        running=running,
        waiting=waiting,
        created_unix_ms=0,
    )


LARGE = Candidate(model="large", max_queue_ms=1000, max_prompt_tokens=2000, max_rtt_ms=100)
SMALL = Candidate(model="small")
BOTH = {"large": card("large"), "small": card("small")}


@pytest.mark.parametrize(
    ("signals", "queue", "chosen", "reason"),
    [
        (Signals(100, 20), 0, "large", "preferred"),
        (Signals(2000, 100), 1000, "large", "preferred"),
        (Signals(100, None), 0, "large", "preferred"),
        (Signals(2001, 20), 0, "small", "large: prompt of about 2001 tokens above 2000"),
        (Signals(100, 140), 0, "small", "large: round trip 140 ms above 100"),
        (Signals(100, 20), 1200, "small", "large: queue 1200 ms above 1000"),
    ],
)
def test_a_limit_passes_on_to_the_next(signals: Signals, queue: float, chosen: str, reason: str) -> None:
    choice = choose([LARGE, SMALL], BOTH, signals, lambda _: queue)
    assert choice is not None
    assert (choice.card.name, choice.reason) == (chosen, reason)


def test_without_a_worker_there_is_no_candidate() -> None:
    only = choose([LARGE, SMALL], {"small": card("small")}, Signals(1), queue_of_card)
    assert only is not None
    assert (only.card.name, only.reason) == ("small", "large: no worker")
    assert choose([LARGE, SMALL], {}, Signals(1), queue_of_card) is None


@given(
    tokens=st.integers(0, 10_000),
    rtt_ms=st.none() | st.floats(0, 1000),
    queue=st.floats(0, 10_000),
    alive=st.sets(st.sampled_from(["large", "small"])),
)
def test_something_that_lives_is_always_chosen(
    tokens: int, rtt_ms: float | None, queue: float, alive: set[str]
) -> None:
    tight = [LARGE, Candidate(model="small", max_queue_ms=5000)]
    found = {name: BOTH[name] for name in alive}
    choice = choose(tight, found, Signals(tokens, rtt_ms), lambda _: queue)
    assert (choice is None) == (not alive)
    assert choice is None or choice.card.name in alive


def test_a_prompt_beyond_the_models_context_goes_elsewhere() -> None:
    choice = choose([SMALL, Candidate(model="large")], BOTH, Signals(5000), queue_of_card)
    assert choice is not None
    assert choice.reason.endswith("none is within its limits")


def test_estimates() -> None:
    assert estimate_tokens(["abcdefgh", "abc"]) == 3
    assert estimate_tokens(["你好"]) == 2
    assert queue_of_card(card("idle", slots=4, running=3)) == 0
    assert queue_of_card(card("busy", slots=4, running=4, waiting=3)) == 4 * 5000 / 4
