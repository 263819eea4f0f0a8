"""What may reach vLLM: the checks every request passes, and the parameters it is given.

Owns the boundary to an engine that trusts its callers: a mistyped number silently kills the input thread
of vLLM's engine core, a token id beyond the vocabulary may end the core and everything in flight. So
only checked values of known types pass, field by field. Must not know how requests run. vLLM itself is
imported only by ``vllm_params``; the rest is pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from schemas.sampling import MAX_TEXT_BYTES, Sampling, StructuredOutput
from workers.engine.base import EngineRequest, RequestEnd

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

MAX_BAD_WORDS = 256  # each is tokenized in the worker's event loop

FORCED = "headrace_forced"  # in vLLM's extra_args: ids that the sampler is made to emit first
Forcing = Literal["never", "needed", "always"]

_encoder = msgspec.msgpack.Encoder()
_sampling = msgspec.msgpack.Decoder(Sampling)


@dataclass(frozen=True, slots=True)
class Limits:
    """The model's: ids are ``0 … vocab_size - 1``, prompt and completion together ``max_model_len``. And
    the engine's: ``forcing`` is "never" where its sampler cannot be made to emit given tokens, "always"
    where logits processors of the operator's may count tokens too; ``seed_by_position`` where seeded
    noise depends on a token's position, and not on how often this engine has drawn before."""

    vocab_size: int
    max_model_len: int
    forcing: Forcing = "needed"
    seed_by_position: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    """``token_ids``: what is fed. What an earlier writer has emitted is either the end of them, with
    ``sampling`` reduced to the budgets that remain, or it is ``forced``: emitted by the sampler once
    more, with the budgets of the whole."""

    token_ids: list[int]
    sampling: Sampling
    forced: Sequence[int] = ()


def admit(request: EngineRequest, limits: Limits) -> Admitted | RequestEnd:
    """Check a request against the model. A ``RequestEnd`` refuses it, or says that it is over already."""
    try:
        # Once through the codec and back: types and bounds hold even for values made in this process,
        # which msgspec does not check when it constructs them (3 us). No bound admits NaN or infinity.
        sampling = _sampling.decode(_encoder.encode(request.sampling))
    except (msgspec.MsgspecError, TypeError, OverflowError) as error:
        return _refused(f"Invalid sampling parameters: {error}")
    if wrong := _mistyped(request) or _unusable(sampling):
        return _refused(wrong)
    if wrong := _foreign_id(request, sampling, limits.vocab_size):
        return RequestEnd(code="invalid_token_id", message=wrong)
    return _budget(request, sampling, limits)


def _budget(request: EngineRequest, sampling: Sampling, limits: Limits) -> Admitted | RequestEnd:
    room = limits.max_model_len - len(request.prompt_ids)
    if room < 1:
        return RequestEnd(
            code="context_length_exceeded",
            message=f"The prompt has {len(request.prompt_ids)} tokens and leaves no room for an answer: "
            f"the model takes {limits.max_model_len} tokens, prompt and answer together. Shorten the input.",
        )
    whole, emitted = min(sampling.max_tokens, room), len(request.prior_ids)
    if whole <= emitted:
        return RequestEnd(reason="length")
    if emitted and _counts_tokens(sampling, limits):
        if limits.forcing != "never":
            return Admitted(list(request.prompt_ids), _within(sampling, whole), list(request.prior_ids))
        if sampling.structured is not None:
            return _refused("This engine cannot continue structured output; send the request again.")
    return Admitted(
        token_ids=[*request.prompt_ids, *request.prior_ids], sampling=_within(sampling, whole, emitted)
    )


def _within(sampling: Sampling, whole: int, emitted: int = 0) -> Sampling:
    left = whole - emitted
    return msgspec.structs.replace(
        sampling, max_tokens=left, min_tokens=min(max(0, sampling.min_tokens - emitted), left)
    )


def _counts_tokens(sampling: Sampling, limits: Limits) -> bool:
    """Whether the next token depends on which tokens before it were generated, beyond being in the
    context. Where not, feeding them as prompt is equal for greedy sampling, a valid other run for
    unseeded sampling, and much cheaper: one prefill instead of a step for each token. Repetition
    penalties count prompt and output alike."""
    return (
        limits.forcing == "always"
        or sampling.structured is not None
        or bool(sampling.bad_words)  # those of several tokens, begun before the cut
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
        or (sampling.seed is not None and sampling.temperature > 0 and not limits.seed_by_position)
    )


def _refused(message: str) -> RequestEnd:
    return RequestEnd(code="engine_rejected", message=message)


def _mistyped(request: EngineRequest) -> str:
    """What is wrong with the fields beside ``sampling``, which nothing has decoded; empty if nothing."""
    if not request.prompt_ids:
        return "The prompt is empty."
    for name, ids in (("prompt_ids", request.prompt_ids), ("prior_ids", request.prior_ids)):
        if not set(map(type, ids)) <= {int}:
            return f"{name} holds something that is not an integer."
    if type(request.priority) is not int or abs(request.priority) >= 1 << 31:
        return "priority is not a 32-bit integer."
    for name, text in (("cache_salt", request.cache_salt), ("traceparent", request.traceparent)):
        if text is not None and (type(text) is not str or not text):
            return f"{name} is not a non-empty string."
    return ""


def _unusable(sampling: Sampling) -> str:
    """Combinations and values that the types allow and an engine cannot take; empty if none."""
    if sampling.min_tokens > sampling.max_tokens:
        return f"min_tokens ({sampling.min_tokens}) is greater than max_tokens ({sampling.max_tokens})."
    if sampling.allowed_token_ids is not None and not sampling.allowed_token_ids:
        return "allowed_token_ids is empty: leave it out to allow all."
    if len(sampling.bad_words) > MAX_BAD_WORDS or not all(sampling.bad_words):
        return f"bad_words takes at most {MAX_BAD_WORDS} words, none of them empty."
    if sum(len(word.encode()) for word in sampling.bad_words) > MAX_TEXT_BYTES:
        return f"bad_words are longer than {MAX_TEXT_BYTES} bytes together."
    structured = sampling.structured
    if structured is not None:
        if sum(map(bool, msgspec.structs.astuple(structured))) != 1:
            return "Structured output needs exactly one of json_schema, json_object, regex, choice, grammar."
        if len(_encoder.encode(structured)) > MAX_TEXT_BYTES:
            return f"The structure asked for is longer than {MAX_TEXT_BYTES} bytes."
    return ""


def _foreign_id(request: EngineRequest, sampling: Sampling, vocab_size: int) -> str:
    """The first list that holds an id the model does not have; empty if none does."""
    lists: tuple[tuple[str, Sequence[int]], ...] = (
        ("prompt_ids", request.prompt_ids),
        ("prior_ids", request.prior_ids),
        ("logit_bias", tuple(sampling.logit_bias or ())),
        ("stop_token_ids", sampling.stop_token_ids),
        ("allowed_token_ids", sampling.allowed_token_ids or ()),
    )
    for name, ids in lists:
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            bad = next(token for token in ids if not 0 <= token < vocab_size)
            return f"{name} holds token id {bad}: this model's ids are 0 to {vocab_size - 1}."
    return ""


def vllm_params(sampling: Sampling, forced: Sequence[int] = ()) -> SamplingParams:
    """Field by field, so that a field vLLM adds is off until someone has looked at it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        logprobs=sampling.logprobs,
        logit_bias=sampling.logit_bias,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        bad_words=list(sampling.bad_words),
        allowed_token_ids=None if sampling.allowed_token_ids is None else list(sampling.allowed_token_ids),
        structured_outputs=None if sampling.structured is None else structured_params(sampling.structured),
        extra_args={FORCED: list(forced)} if forced else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def structured_params(structured: StructuredOutput) -> StructuredOutputsParams:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(
        json=structured.json_schema,
        json_object=structured.json_object or None,
        regex=structured.regex,
        choice=None if structured.choice is None else list(structured.choice),
        grammar=structured.grammar,
    )
