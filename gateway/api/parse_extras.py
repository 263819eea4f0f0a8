"""The fields that chat completions and completions share beyond sampling: choices, streams, structure, and
vLLM's own. Surfaces inherit ``ExtraFields``; see ``parse_responses`` for what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.api.parse_json import JsonObject
from gateway.api.parse_sampling import Label, SamplingFields
from gateway.api.parse_structured import (
    Choices,
    ResponseFormat,
    Schema,
    StructuredOutputs,
    Text,
    refuse_other_formats,
    without_settings,
)
from schemas.errors import HeadraceError

MAX_CHOICES = 16  # of one prompt: each is a response of its own, in the queue and in the batch

_OPERATORS = "it is the operator's to set"
_MEDIA = "only text is served"
UNSUPPORTED = {
    "cache_salt": "tenants are kept apart in the prefix cache without it",
    "early_stopping": "beam search is not served",
    "ec_transfer_params": _OPERATORS,
    "guided_decoding_backend": _OPERATORS,
    "guided_whitespace_pattern": _OPERATORS,
    "include_stop_str_in_output": "a stop string is never part of the answer; append it",
    "kv_transfer_params": _OPERATORS,
    "length_penalty": "beam search is not served",
    "logits_processors": _OPERATORS,
    "logprob_token_ids": "ask for the likeliest with logprobs",
    "mm_payload": _MEDIA,
    "mm_processor_kwargs": _MEDIA,
    "priority": "it follows from who asks",
    "prompt_logprobs": "only the completion's tokens have log probabilities",
    "repetition_detection": "use repetition_penalty or stop",
    "request_id": "send the header Idempotency-Key; x-request-id is the response's id",
    "return_mm_kwargs": _MEDIA,
    "return_token_ids": "ask for logprobs with return_tokens_as_token_ids",
    "return_token_offsets": "ask for logprobs",
    "routed_experts_prompt_start": "routing is not shown",
    "session_id": "leave it out",
    "skip_special_tokens": "special tokens make no text",
    "stream_interval": "text is sent as it comes",
    "thinking_token_budget": "leave it out",
    "truncate_prompt_tokens": "a prompt is never cut: send a shorter one",
    "truncation_side": "a prompt is never cut: send a shorter one",
    "use_beam_search": "beam search is not served; n gives several choices",
    "vllm_xargs": _OPERATORS,
    "watermarking": _OPERATORS,
}
# Values of those that ask for what is done anyway: clients send them as they stand in vLLM's document.
NEUTRAL: dict[str, object] = {
    "early_stopping": False,
    "include_stop_str_in_output": False,
    "length_penalty": 1.0,
    "priority": 0,
    "return_mm_kwargs": False,
    "return_token_ids": False,
    "return_token_offsets": False,
    "routed_experts_prompt_start": 0,
    "skip_special_tokens": True,
    "use_beam_search": False,
    "watermarking": False,
}


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: the usage so far in each chunk
    include_obfuscation: bool | None = None


class ExtraFields(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Label | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Label | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Text | Schema | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None
    spaces_between_special_tokens: bool | None = None  # there are none in the text: either way the same
    return_tokens_as_token_ids: bool | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


def prepared(raw: JsonObject, neutral: Mapping[str, object]) -> JsonObject:
    """A request's fields without those that ask for what is done anyway. Raises ``unsupported_parameter``
    for what is refused by more than its name."""
    refuse_other_formats(raw.get("response_format"), "response_format")
    given = {name: value for name, value in raw.items() if not _is_neutral(value, neutral.get(name))}
    if "structured_outputs" in given:
        given["structured_outputs"] = without_settings(given["structured_outputs"])
    return given


def refuse_unserved(fields: ExtraFields) -> None:
    """Raises for fields that contradict each other, or ask for what is not done."""
    options = fields.stream_options
    if options is None:
        return
    if not fields.stream:
        raise HeadraceError("invalid_request", "stream_options needs stream: true.", param="stream_options")
    if options.include_obfuscation:
        problem = "include_obfuscation: chunks are never padded; leave it out."
        param = "stream_options.include_obfuscation"
        raise HeadraceError("unsupported_parameter", problem, param=param)
    if options.continuous_usage_stats and not options.include_usage:
        problem = "continuous_usage_stats needs include_usage: true."
        raise HeadraceError("invalid_request", problem, param="stream_options.continuous_usage_stats")


def _is_neutral(value: Any, neutral: object) -> bool:
    if neutral is None:
        return False
    if isinstance(neutral, bool):
        return value is neutral
    return isinstance(value, int | float) and not isinstance(value, bool) and value == neutral
