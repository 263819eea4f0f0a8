"""The simulated engine's sequence: deterministic, sensitive to every token, and readable as text."""

from __future__ import annotations

import codecs
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Sim
from schemas.sampling import Sampling
from tests.oracle import expected_completion
from workers.engine.sim_sequence import choose, next_state, start_state
from workers.engine.sim_words import EOS_ID, FIRST_WORD_ID, VOCAB_SIZE, WORDS

ENDLESS = Sampling(max_tokens=64, ignore_eos=True)
ENDLESS_AND_LONG = Sampling(max_tokens=1000, ignore_eos=True)
prompts = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40)


@given(prompts, st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1)))
def test_same_prompt_and_seed_same_completion(prompt: list[int], seed: int | None) -> None:
    sampling = Sampling(max_tokens=64, seed=seed)
    assert expected_completion(prompt, sampling) == expected_completion(list(prompt), sampling)


@given(prompts.filter(lambda prompt: len(set(prompt)) > 1), st.data())
def test_any_change_of_the_prompt_changes_the_completion(prompt: list[int], data: st.DataObject) -> None:
    whole, _ = expected_completion(prompt, ENDLESS)
    at = data.draw(st.integers(0, len(prompt) - 1))
    lost = prompt[:at] + prompt[at + 1 :]
    repeated = prompt[: at + 1] + prompt[at:]
    for other in (lost, repeated, prompt[::-1] if prompt != prompt[::-1] else lost):
        assert expected_completion(other or [0], ENDLESS)[0] != whole


def test_a_wrong_token_on_the_way_changes_all_that_follows() -> None:
    state = start_state([1, 2, 3], None)
    right = wrong = next_state(state, 300)
    wrong = next_state(state, 301)
    differing = 0
    for position in range(50):
        a = choose(right, position, ENDLESS, 0)
        b = choose(wrong, position, ENDLESS, 0)
        differing += a != b
        right, wrong = next_state(right, a), next_state(wrong, b)
    assert differing > 40


def test_seed_changes_the_completion() -> None:
    completions = {tuple(expected_completion([5], Sampling(max_tokens=20, seed=s))[0]) for s in range(20)}
    assert len(completions) == 20


def test_mean_length_is_as_configured() -> None:
    lengths = [
        len(expected_completion([prompt], Sampling(max_tokens=10_000), Sim(mean_output_tokens=50))[0])
        for prompt in range(600)
    ]
    assert 42 < mean(lengths) < 60  # characters may not be cut, so a little above 50; 600 draws


def test_budgets() -> None:
    ids, reason = expected_completion([1], Sampling(max_tokens=7, ignore_eos=True))
    assert (len(ids), reason) == (7, "length")
    ids, reason = expected_completion([1] * 90, ENDLESS, Sim(max_model_len=100))
    assert (len(ids), reason) == (10, "length")
    sampling = Sampling(max_tokens=400, min_tokens=200)
    ids, reason = expected_completion([1], sampling, Sim(mean_output_tokens=2))
    assert 200 <= len(ids) < 400
    assert reason == "stop"
    assert EOS_ID not in ids


def test_a_stop_token_ends_and_is_not_part_of_the_completion() -> None:
    ids, _ = expected_completion([9], ENDLESS)
    sampling = Sampling(max_tokens=64, ignore_eos=True, stop_token_ids=(ids[10],))
    stopped, reason = expected_completion([9], sampling)
    assert stopped == ids[: ids.index(ids[10])]
    assert reason == "stop"


@given(prompts)
def test_text_is_valid_utf8_until_the_budget_cuts_it(prompt: list[int]) -> None:
    ids, reason = expected_completion(prompt, Sampling(max_tokens=300))
    words = [bytes([i]) if i < FIRST_WORD_ID else f" {WORDS[i - FIRST_WORD_ID]}".encode() for i in ids]
    data = b"".join(words)
    codecs.getincrementaldecoder("utf-8")().decode(data, final=reason == "stop")


def test_completions_hold_half_characters() -> None:
    ids, _ = expected_completion([1], Sampling(max_tokens=2000, ignore_eos=True))
    share = sum(128 <= token < 256 for token in ids) / len(ids)
    assert 0.03 < share < 0.2


def test_words_are_unique() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert 1900 < len(WORDS) < 2300


@pytest.mark.parametrize("alternatives", [0, 1, 5, 20])
def test_logprobs(alternatives: int) -> None:
    from workers.engine.sim_sequence import logprobs_of

    state = start_state([1, 2], None)
    logprobs = logprobs_of(state, 300, alternatives)
    assert len({token for token, _ in logprobs.top}) == alternatives
    assert logprobs.chosen <= 0
    assert logprobs == logprobs_of(state, 300, alternatives)
    assert list(logprobs.top) == sorted(logprobs.top, key=lambda pair: -pair[1])


def test_characters_are_split_unless_told_otherwise() -> None:
    def halves(sim: Sim) -> int:
        return sum(
            128 <= token < FIRST_WORD_ID for token in expected_completion([1], ENDLESS_AND_LONG, sim)[0]
        )

    assert halves(Sim()) > 10
    assert halves(Sim(split_characters=False)) == 0
