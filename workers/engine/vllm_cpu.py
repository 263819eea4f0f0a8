"""vLLM's CPU worker, with seeded sampling that survives a prompt fed in parts.

vLLM samples in every step, also where a part of a prompt is only computed, and afterwards takes that draw
back from the request's generator by its offset, which generators on CPUs do not have: the engine core
dies, and all requests with it (vLLM 0.32). vLLM loads this class by name, in its engine core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.worker.cpu_worker import CPUWorker

if TYPE_CHECKING:
    import torch


class SeededCPUWorker(CPUWorker):
    def sample_tokens(self, grammar_output: Any) -> Any:
        """Draws that will be thrown away come from the common generator instead: nothing to take back."""
        if self.use_v2_model_runner:  # has no generators
            return super().sample_tokens(grammar_output)
        generators: dict[int, torch.Generator] = self.model_runner.input_batch.generators
        thrown_away = self.model_runner.discard_request_mask.np
        aside = {row: generators.pop(row) for row in list(generators) if thrown_away[row]}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(aside)
