"""What may reach vLLM, without vLLM: the checks, the budgets of a continuation, and the [vllm] table."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import ResponseId
from schemas.sampling import MAX_TEXT_BYTES, Sampling, StructuredOutput
from workers.engine.base import EngineDead, EngineRequest, RequestEnd
from workers.engine.vllm_boot import check_names, cpu_defaults
from workers.engine.vllm_sampling import Admitted, Limits, admit

LIMITS = Limits(vocab_size=100, max_model_len=64)
PLAIN = Sampling(max_tokens=8)


def request(
    prompt: Any = (1, 2, 3), sampling: Sampling = PLAIN, prior: Any = (), **more: Any
) -> EngineRequest:
    return EngineRequest(ResponseId("resp_1"), prompt, sampling, prior, **more)


def refusal(of: EngineRequest) -> RequestEnd:
    end = admit(of, LIMITS)
    assert isinstance(end, RequestEnd)
    assert end.reason is None
    assert end.message
    return end


@pytest.mark.parametrize(
    "wire",
    [
        {"max_tokens": 4, "seed": "x"},
        {"max_tokens": 4.5},
        {"max_tokens": 4, "seed": 1 << 63},
        {"max_tokens": 0},
        {"max_tokens": 4, "temperature": "hot"},
        {"max_tokens": 4, "top_p": float("nan")},
        {"max_tokens": 4, "temperature": float("inf")},
        {"max_tokens": 4, "repetition_penalty": float("nan")},
        {"max_tokens": 4, "logit_bias": {5: float("nan")}},
        {"max_tokens": 4, "stop_token_ids": [1.5]},
        {"max_tokens": 4, "stop_token_ids": [-1]},
        {"max_tokens": 4, "logit_bias": {"5": 1.0}},
        {"max_tokens": 4, "logit_bias": {5: 101.0}},
        {"max_tokens": 4, "logprobs": 21},
        {"max_tokens": 4, "structured": {"regex": 5}},
    ],
)
def test_mistyped_sampling_cannot_be_decoded_and_is_refused_where_it_was_built_here(
    wire: dict[str, Any],
) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(wire), type=Sampling)
    assert refusal(request(sampling=Sampling(**wire))).code == "engine_rejected"


@pytest.mark.parametrize(
    ("wrong", "code", "named"),
    [
        (request(prompt=(1, 100)), "invalid_token_id", "prompt_ids"),
        (request(prompt=(-1,)), "invalid_token_id", "prompt_ids"),
        (request(prior=(100,)), "invalid_token_id", "prior_ids"),
        (request(sampling=Sampling(max_tokens=8, bad_words=("",))), "engine_rejected", "bad_words"),
        (request(sampling=Sampling(max_tokens=8, bad_words=("x",) * 257)), "engine_rejected", "bad_words"),
        (request(sampling=Sampling(max_tokens=8, logit_bias={100: 1.0})), "invalid_token_id", "logit_bias"),
        (
            request(sampling=Sampling(max_tokens=8, stop_token_ids=(5, 100))),
            "invalid_token_id",
            "stop_token_ids",
        ),
        (request(sampling=Sampling(max_tokens=8, allowed_token_ids=(100,))), "invalid_token_id", "allowed"),
        (request(prompt=(1,) * 64), "context_length_exceeded", "64"),
        (request(prompt=()), "engine_rejected", "empty"),
        (request(prompt=(1.0,)), "engine_rejected", "prompt_ids"),
        (request(prompt=(True,)), "engine_rejected", "prompt_ids"),
        (request(prompt=("1",)), "engine_rejected", "prompt_ids"),
        (request(priority="0"), "engine_rejected", "priority"),
        (request(priority=1 << 40), "engine_rejected", "priority"),
        (request(cache_salt=5), "engine_rejected", "cache_salt"),
        (request(cache_salt=""), "engine_rejected", "cache_salt"),
        (request(traceparent=b"00-"), "engine_rejected", "traceparent"),
        (request(sampling=Sampling(max_tokens=8, min_tokens=9)), "engine_rejected", "min_tokens"),
        (
            request(sampling=Sampling(max_tokens=8, allowed_token_ids=())),
            "engine_rejected",
            "allowed_token_ids",
        ),
        (
            request(sampling=Sampling(max_tokens=8, logit_bias={5: float("nan")})),
            "engine_rejected",
            "logit_bias",
        ),
        (
            request(sampling=Sampling(max_tokens=8, bad_words=("x" * (MAX_TEXT_BYTES + 1),))),
            "engine_rejected",
            "bad_words",
        ),
    ],
)
def test_refusals_carry_a_code_and_name_what_is_wrong(wrong: EngineRequest, code: str, named: str) -> None:
    end = refusal(wrong)
    assert end.code == code
    assert named in end.message


@pytest.mark.parametrize(
    "structured",
    [
        StructuredOutput(),
        StructuredOutput(regex="a", grammar="b"),
        StructuredOutput(json_schema=""),
        StructuredOutput(choice=()),
        StructuredOutput(choice=("y" * (MAX_TEXT_BYTES + 1),)),
    ],
)
def test_structures_that_are_none_or_two_or_too_long(structured: StructuredOutput) -> None:
    assert refusal(request(sampling=Sampling(max_tokens=8, structured=structured))).code == "engine_rejected"


def test_a_good_request_is_fed_as_it_is() -> None:
    assert admit(request(prompt=[1, 99]), LIMITS) == Admitted([1, 99], PLAIN)


@given(
    prompt=st.integers(1, 63),
    max_tokens=st.integers(1, 200),
    min_tokens=st.integers(0, 200),
    emitted=st.integers(0, 80),
)
def test_a_continuation_has_what_the_whole_run_would_have_left(
    prompt: int, max_tokens: int, min_tokens: int, emitted: int
) -> None:
    sampling = Sampling(max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens))
    whole = admit(request(prompt=[1] * prompt, sampling=sampling), LIMITS)
    assert isinstance(whole, Admitted)
    assert prompt + whole.sampling.max_tokens <= LIMITS.max_model_len
    rest = admit(request(prompt=[1] * prompt, sampling=sampling, prior=[2] * emitted), LIMITS)
    if emitted >= whole.sampling.max_tokens:
        assert rest == RequestEnd(reason="length")
    else:
        assert isinstance(rest, Admitted)
        assert rest.token_ids == [1] * prompt + [2] * emitted
        assert rest.sampling.max_tokens == whole.sampling.max_tokens - emitted
        assert rest.sampling.min_tokens == max(0, whole.sampling.min_tokens - emitted)


# Which of them a continuation feeds as prompt, and which it makes the sampler emit once more.
SHAPED = StructuredOutput(regex="a+")
FED = {
    "greedy": Sampling(max_tokens=8, temperature=0),
    "greedy, seed": Sampling(max_tokens=8, temperature=0, seed=1),
    "unseeded": Sampling(max_tokens=8, temperature=1),
    "unseeded, top_p": Sampling(max_tokens=8, temperature=1, top_p=0.5, top_k=3, min_p=0.1),
    "repetition_penalty": Sampling(max_tokens=8, temperature=0, repetition_penalty=1.3),
    "stateless": Sampling(
        max_tokens=8, min_tokens=5, logit_bias={5: 1.0}, allowed_token_ids=(5, 6), stop_token_ids=(6,)
    ),
}
REPLAYED = {
    "seed": Sampling(max_tokens=8, temperature=1, seed=0),
    "presence_penalty": Sampling(max_tokens=8, temperature=0, presence_penalty=0.1),
    "negative frequency_penalty": Sampling(max_tokens=8, frequency_penalty=-0.1),
    "bad_words": Sampling(max_tokens=8, temperature=0, bad_words=("ab",)),
    "structured": Sampling(max_tokens=8, temperature=0, structured=SHAPED),
    "structured, min_tokens": Sampling(max_tokens=8, min_tokens=6, structured=SHAPED),
}


@pytest.mark.parametrize("sampling", FED.values(), ids=FED.keys())
def test_fed_as_prompt(sampling: Sampling) -> None:
    assert admit(request(sampling=sampling, prior=[5, 6, 7]), LIMITS) == Admitted(
        [1, 2, 3, 5, 6, 7],
        msgspec.structs.replace(sampling, max_tokens=5, min_tokens=max(0, sampling.min_tokens - 3)),
    )


@pytest.mark.parametrize("sampling", REPLAYED.values(), ids=REPLAYED.keys())
def test_replayed_with_the_budgets_of_the_whole(sampling: Sampling) -> None:
    assert admit(request(sampling=sampling, prior=[5, 6, 7]), LIMITS) == Admitted(
        [1, 2, 3], sampling, [5, 6, 7]
    )


@pytest.mark.parametrize("sampling", [*FED.values(), *REPLAYED.values()], ids=[*FED, *REPLAYED])
def test_nothing_is_replayed_that_nobody_has_emitted_or_that_has_no_budget_left(sampling: Sampling) -> None:
    assert admit(request(sampling=sampling), LIMITS) == Admitted([1, 2, 3], sampling)
    assert admit(request(sampling=sampling, prior=[5] * 8), LIMITS) == RequestEnd(reason="length")


def test_a_replay_is_cut_to_the_context_as_the_whole_was() -> None:
    admitted = admit(request(prompt=[1] * 60, sampling=REPLAYED["seed"], prior=[5, 6, 7]), LIMITS)
    assert isinstance(admitted, Admitted)
    assert (admitted.sampling.max_tokens, admitted.forced) == (4, [5, 6, 7])
    assert admit(request(prompt=[1] * 60, sampling=REPLAYED["seed"], prior=[5] * 4), LIMITS) == RequestEnd(
        reason="length"
    )


@pytest.mark.parametrize("sampling", [*FED.values(), *REPLAYED.values()], ids=[*FED, *REPLAYED])
def test_an_engine_that_cannot_replay_feeds_and_refuses_structures(sampling: Sampling) -> None:
    limits = Limits(100, 64, forcing="never")
    end = admit(request(sampling=sampling, prior=[5, 6, 7]), limits)
    if sampling.structured is not None:
        assert isinstance(end, RequestEnd)
        assert end.code == "engine_rejected"
        assert "continue" in end.message
    else:
        assert isinstance(end, Admitted)
        assert (end.token_ids, end.forced) == ([1, 2, 3, 5, 6, 7], ())


def test_the_engine_decides_whether_a_seed_or_anything_else_needs_a_replay() -> None:
    def forced(sampling: Sampling, limits: Limits) -> bool:
        admitted = admit(request(sampling=sampling, prior=[5]), limits)
        assert isinstance(admitted, Admitted)
        return bool(admitted.forced)

    by_position = Limits(100, 64, seed_by_position=True)
    assert not forced(REPLAYED["seed"], by_position)
    assert forced(REPLAYED["bad_words"], by_position)
    assert all(forced(sampling, Limits(100, 64, forcing="always")) for sampling in FED.values())


def test_the_vllm_table_names_what_it_cannot_use() -> None:
    known = ["max_num_seqs", "model", "dtype", "skip_tokenizer_init"]
    check_names({"dtype": "float32", "max_num_seqs": 3}, known)
    for table, told in (
        ({"max_num_sequences": 3}, "max_num_sequences: did you mean max_num_seqs?"),
        ({"zzzzzz": 3}, "zzzzzz is no field"),
        ({"model": "x"}, "model: set worker.model instead"),
        ({"skip_tokenizer_init": True}, "skip_tokenizer_init: "),
    ):
        with pytest.raises(EngineDead) as raised:
            check_names(table, known)
        assert told in str(raised.value)


def test_the_single_process_executor_is_for_one_process() -> None:
    assert "distributed_executor_backend" in cpu_defaults({})
    assert "distributed_executor_backend" not in cpu_defaults({"tensor_parallel_size": 2})
    assert "kv_cache_memory_bytes" not in cpu_defaults({"gpu_memory_utilization": 0.5})
