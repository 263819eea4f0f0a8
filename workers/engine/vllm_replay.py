"""Makes vLLM's sampler emit given tokens first, so that a response goes on as if it had not been cut.

What the sampler counts or draws (penalties, seeded noise, the state of a grammar) then is what it was
before the cut, which feeding the tokens as prompt would not restore. vLLM loads these classes by name, in
this process and in its engine core. Which requests need them, and that the forced tokens are taken off
again, is decided elsewhere (``vllm_sampling``, ``vllm_output``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as RunnerV2Processor

from workers.engine.vllm_sampling import FORCED

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

# A row of logits with one finite value: neither penalties, temperature nor top-k/top-p can change what is
# sampled. At 0, since a penalty multiplies and a temperature divides.
_NEVER, _FORCED = float("-inf"), 0.0


def install(config: VllmConfig) -> None:
    """Add the processor that fits vLLM's model runner, behind the operator's own: the last one decides.
    Not where vLLM takes none; whether it then works is found out by the engine's first request."""
    model = config.model_config
    if config.speculative_config is not None or model.return_sampling_mask:
        return
    fitting = ForcedTokensV2 if config.use_v2_model_runner else ForcedTokens
    name = f"{fitting.__module__}:{fitting.__name__}"
    model.logits_processors = [*(model.logits_processors or ()), name]


def forced_ids(params: SamplingParams) -> list[int]:
    return (params.extra_args or {}).get(FORCED) or []


def _force(forced: Sequence[int], output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    """One row. ``output_ids`` is vLLM's own list: it is right after a preemption too."""
    if len(output_ids) < len(forced):
        logits.fill_(_NEVER)
        logits[forced[len(output_ids)]] = _FORCED
    return logits


class ForcedTokens(AdapterLogitsProcessor):
    """For the first model runner: the only one on CPUs. Costs a look at an empty dict a step when nobody
    replays. On accelerators any processor makes this runner wait for the last step's tokens."""

    def is_argmax_invariant(self) -> bool:
        return False  # else it would not be asked where all is greedy

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., torch.Tensor] | None:
        forced = forced_ids(params)
        return partial(_force, forced) if forced else None


class ForcedTokensV2(RunnerV2Processor):
    """For model runner V2, which accelerators have. Which rows are forced is known on the host (without
    speculative decoding a request has one row, in batch order), so nothing waits for the device."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._states = req_states
        self._forced: dict[int, list[int]] = {}  # by request slot

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        forced = forced_ids(sampling_params)
        if forced:
            self._forced[req_idx] = forced
        else:
            self._forced.pop(req_idx, None)  # of who had the slot before
        return bool(forced)

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        if not self._forced:
            return logits
        rows, tokens = self._due(ctx)
        if rows:
            at: Any = async_tensor_h2d(rows, device=logits.device)
            logits.index_fill_(0, at, _NEVER)
            logits[at, async_tensor_h2d(tokens, device=logits.device)] = _FORCED
        return logits

    def _due(self, ctx: LogitsContext) -> tuple[list[int], list[int]]:
        """Rows whose next token is forced, and the tokens. The number of tokens before the one that is
        sampled tells which it is, whatever part of them a preemption has made prefill again."""
        rows: list[int] = []
        tokens: list[int] = []
        before = zip(ctx.idx_mapping_np.tolist(), ctx.seq_lens_upper_bound_np.tolist(), strict=False)
        for row, (slot, length) in enumerate(before):  # lengths are padded
            forced = self._forced.get(slot)
            if forced is None:
                continue
            output = length - int(self._states.prompt_len.np[slot])  # below 0: a chunk of the prompt
            if output >= len(forced):
                del self._forced[slot]
            elif output >= 0:
                rows.append(row)
                tokens.append(forced[output])
        return rows, tokens
