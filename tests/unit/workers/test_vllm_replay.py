"""How vLLM is given the processor, and the one for model runner V2, which runs on accelerators only: here
on tensors of a CPU, with the runner's state and batch as they would be. The other one is tried by tests/e2e,
in its engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from workers.engine.vllm_sampling import FORCED

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),  # for importing vLLM
    pytest.mark.filterwarnings("default"),  # those of torch and vLLM are not ours to heed
]

PROMPT_LEN = 7
VOCAB = 11


class Runner:
    """Slots with prompts of ``PROMPT_LEN`` tokens, and batches of them."""

    def __init__(self) -> None:
        from workers.engine.vllm_replay import ForcedTokensV2

        states: Any = SimpleNamespace(prompt_len=SimpleNamespace(np=[PROMPT_LEN] * 8))
        self.processor = ForcedTokensV2(None, states)

    def add(self, slot: int, forced: list[int] | None) -> bool:
        params = SimpleNamespace(extra_args={FORCED: forced} if forced is not None else None)
        return self.processor.add_request(slot, params)

    def sampled(self, **lengths: int) -> dict[str, int | None]:
        """Greedily sampled tokens for slots (``s3=9``: slot 3 has 9 tokens before the one that is
        sampled), None where the row of logits is as the model made it."""
        import numpy as np
        import torch

        slots = [int(name[1:]) for name in lengths]
        before = torch.arange(len(slots) * VOCAB, dtype=torch.float32).reshape(len(slots), VOCAB)
        context: Any = SimpleNamespace(
            idx_mapping_np=np.array(slots, dtype=np.intp),
            seq_lens_upper_bound_np=np.array([*lengths.values(), 0, 0], dtype=np.int32),  # padded
        )
        after = self.processor.apply(before.clone(), context)
        return {
            name: None if torch.equal(after[row], before[row]) else int(after[row].argmax())
            for row, name in enumerate(lengths)
        }


def test_forced_tokens_come_first_and_only_for_their_request() -> None:
    runner = Runner()
    assert runner.add(3, [4, 9, 1])
    assert not runner.add(5, None)
    assert runner.sampled(s3=PROMPT_LEN, s5=PROMPT_LEN) == {"s3": 4, "s5": None}
    assert runner.sampled(s5=PROMPT_LEN + 1, s3=PROMPT_LEN + 1) == {"s5": None, "s3": 9}
    assert runner.sampled(s3=PROMPT_LEN + 2) == {"s3": 1}
    assert runner.sampled(s3=PROMPT_LEN + 3) == {"s3": None}


def test_parts_of_a_prompt_are_left_alone() -> None:
    runner = Runner()
    runner.add(0, [4])
    assert runner.sampled(s0=PROMPT_LEN - 3) == {"s0": None}
    assert runner.sampled(s0=PROMPT_LEN) == {"s0": 4}


def test_after_a_preemption_it_goes_on_where_the_output_is() -> None:
    runner = Runner()
    runner.add(0, [4, 9, 1])
    assert runner.sampled(s0=PROMPT_LEN) == {"s0": 4}
    runner.add(2, [4, 9, 1])  # resumed in another slot, prompt and first output computed anew
    assert runner.sampled(s2=PROMPT_LEN - 2) == {"s2": None}
    assert runner.sampled(s2=PROMPT_LEN + 1) == {"s2": 9}


def test_a_slot_does_not_remember_who_had_it_before() -> None:
    runner = Runner()
    runner.add(1, [4, 9])
    runner.add(1, None)
    assert runner.sampled(s1=PROMPT_LEN) == {"s1": None}
    runner.add(1, [8])
    assert runner.sampled(s1=PROMPT_LEN) == {"s1": 8}


def configured(
    theirs: list[str] | None, *, v2: bool = False, drafts: bool = False, mask: bool = False
) -> Any:
    from workers.engine.vllm_replay import install

    model = SimpleNamespace(logits_processors=theirs, return_sampling_mask=mask)
    config: Any = SimpleNamespace(
        model_config=model, speculative_config=object() if drafts else None, use_v2_model_runner=v2
    )
    install(config)
    return model.logits_processors


def test_the_processor_of_the_model_runner_comes_behind_the_operators_own() -> None:
    assert configured(None) == ["workers.engine.vllm_replay:ForcedTokens"]
    assert configured(["a:B"], v2=True) == ["a:B", "workers.engine.vllm_replay:ForcedTokensV2"]


def test_vllm_can_load_both() -> None:
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    assert len(_load_logitsprocs_by_fqcns(configured(None))) == 1
    assert len(_load_v2_logitsprocs_by_fqcns(configured(None, v2=True))) == 1


def test_no_processor_where_vllm_takes_none() -> None:
    assert configured(None, drafts=True) is None
    assert configured(None, mask=True) is None
