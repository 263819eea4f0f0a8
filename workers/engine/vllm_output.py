"""vLLM's outputs in the words of ``workers.engine.base``. Pure; must not know how requests run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from schemas.reply import FinishReason, TokenLogprobs
from workers.engine.base import Delta, EngineRequest, RequestEnd

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput, RequestOutput

LOGPROB_FLOOR = -9999.0  # for minus infinity, which JSON cannot carry; vLLM's own server has the same
_GOOD: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class Replay:
    """What a request's sampler was made to emit first, to be taken off its DELTA outputs."""

    def __init__(self, forced: Sequence[int]) -> None:
        self._left = list(forced)

    def take_off(self, completion: CompletionOutput) -> bool:
        """Strip an output of forced tokens and their log probabilities. False: what came is not what was
        forced, or an end came with it, and the rest would belong to some other response."""
        if not self._left:
            return True
        ids = list(completion.token_ids)
        count = min(len(self._left), len(ids))
        if not count:
            return True
        if ids[:count] != self._left[:count]:
            return False
        del self._left[:count]
        completion.token_ids = ids[count:]
        if completion.logprobs is not None:
            completion.logprobs = completion.logprobs[count:]
        return bool(completion.token_ids) or completion.finish_reason not in _GOOD


def delta_of(request: EngineRequest, output: RequestOutput) -> Delta | None:
    """What is new in a DELTA output; None where nothing is. The token that stopped the response is taken
    off its ids: it ends the text, it is not part of it."""
    completion = output.outputs[0]
    ids: Sequence[int] = completion.token_ids
    reason, stop_token = completion.finish_reason, None
    if reason == "stop" and ids:
        ids, stop_token = ids[:-1], ids[-1]
    if not ids and reason is None:
        return None
    logprobs = None
    if ids and completion.logprobs is not None:
        logprobs = token_logprobs(ids, completion.logprobs, request.sampling.logprobs or 0)
    end = None if reason is None else _end(request, output, reason, stop_token)
    return Delta(request.request_id, ids, logprobs, end)


def _end(request: EngineRequest, output: RequestOutput, reason: str, stop_token: int | None) -> RequestEnd:
    cached_tokens = min(output.num_cached_tokens or 0, len(request.prompt_ids))  # without prior_ids
    if reason not in _GOOD:
        if request.sampling.structured is not None:
            # vLLM tells no reason here, but this is how a grammar ends that could not be compiled.
            return RequestEnd(code="engine_rejected", message="The engine cannot follow this grammar.")
        return RequestEnd(code="engine_failed", message=f"The engine ended the request: {reason}.")
    times = output.metrics  # None where vLLM keeps no statistics
    if times is None:
        return RequestEnd(_GOOD[reason], stop_token=stop_token, cached_tokens=cached_tokens)
    return RequestEnd(
        _GOOD[reason],
        stop_token=stop_token,
        cached_tokens=cached_tokens,
        engine_queue_ms=(times.scheduled_ts - times.queued_ts) * 1e3,
        prefill_ms=(times.first_token_ts - times.scheduled_ts) * 1e3,
        decode_ms=(times.last_token_ts - times.first_token_ts) * 1e3,
    )


def token_logprobs(
    ids: Sequence[int], positions: Sequence[dict[int, Logprob]], alternatives: int
) -> tuple[TokenLogprobs, ...]:
    """Each position holds the chosen token and the best ``alternatives``, which it may be among."""
    return tuple(
        TokenLogprobs(
            chosen=max(position[token].logprob, LOGPROB_FLOOR),
            top=tuple(
                (other, max(entry.logprob, LOGPROB_FLOOR))
                for other, entry in sorted(position.items(), key=lambda item: -item[1].logprob)[:alternatives]
            ),
        )
        for token, position in zip(ids, positions, strict=False)  # a stop token has a position, and no id
    )
