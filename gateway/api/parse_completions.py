"""A completions request to ``Generation``s: one for each prompt and choice.

Types: ``openai.types.completion_create_params``, with vLLM's additions. Nothing is ignored silently; see
``parse_responses``.
"""

from __future__ import annotations

from typing import Annotated, cast

import msgspec
from msgspec import Meta

from gateway.api import parse_extras
from gateway.api.parse_extras import ExtraFields, prepared, refuse_unserved
from gateway.api.parse_json import JsonObject, to_request
from gateway.api.parse_sampling import TokenLimit
from gateway.api.parse_structured import of_chat_fields
from gateway.api.responses_object import Echo
from gateway.caller import Caller
from gateway.generation import ChatMessage, Generation
from schemas.config import Gateway
from schemas.errors import HeadraceError
from schemas.sampling import Vocab

DEFAULT_MAX_TOKENS = 16  # OpenAI's, and vLLM's
MAX_RESPONSES = 64  # prompts times choices: each is a response of its own, in the queue and in the batch
UNSUPPORTED = {
    **parse_extras.UNSUPPORTED,
    "best_of": "n gives as many choices as are made",
    "prompt_embeds": "send text or token ids",
    "suffix": "text is only continued",
}

Prompt = str | list[int]


class Completion(ExtraFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prompt: str | Annotated[list[str | Vocab | list[Vocab]], Meta(min_length=1)]
    max_tokens: TokenLimit | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    add_special_tokens: bool | None = None

    @property
    def prompts(self) -> list[Prompt]:
        """A list of ids is one prompt, a list of texts or of such lists is several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [cast("list[int]", self.prompt)]
        return cast("list[Prompt]", self.prompt)


def parse_completion(raw: JsonObject) -> Completion:
    """Raises ``HeadraceError``; see ``parse_json`` for the codes."""
    raw = prepared(raw, parse_extras.NEUTRAL)
    if raw.get("best_of") is not None and raw["best_of"] == (raw.get("n") or 1):
        del raw["best_of"]  # as many are made as are shown
    if raw.get("suffix") == "":
        del raw["suffix"]
    completion = to_request(raw, Completion, unsupported=UNSUPPORTED)
    refuse_unserved(completion)
    _check_prompts(completion)
    if completion.echo and completion.logprobs is not None:
        problem = "echo with logprobs is not supported: only the completion's tokens have log probabilities."
        raise HeadraceError("unsupported_parameter", problem, param="echo")
    return completion


def completion_generations(
    completion: Completion,
    *,
    caller: Caller,
    limits: Gateway,
    received_unix_ms: float,
    traceparent: str | None = None,
) -> list[Generation]:
    """One for each prompt. Raises ``HeadraceError`` where fields contradict each other."""
    echo = Echo(
        max_output_tokens=completion.max_tokens or DEFAULT_MAX_TOKENS,
        temperature=1.0 if completion.temperature is None else completion.temperature,
        top_p=1.0 if completion.top_p is None else completion.top_p,
        user=completion.user,
        store=False,
    )
    sampling = completion.sampling(
        completion.max_tokens or DEFAULT_MAX_TOKENS,
        logprobs=completion.logprobs,
        structured=of_chat_fields(completion)[0],
    )
    return [
        Generation(
            api="completions",
            tenant=caller.tenant,
            quota=caller.quota,
            model=completion.model or "",
            messages=(ChatMessage("user", prompt),) if isinstance(prompt, str) else (),
            prompt_ids=() if isinstance(prompt, str) else tuple(prompt),
            special_tokens=completion.add_special_tokens is not False,
            sampling=sampling,
            stop=completion.stop_strings(),
            priority=limits.default_class,
            cache=completion.cache or "auto",
            store=False,
            echo=msgspec.json.encode(echo).decode(),
            traceparent=traceparent,
            received_unix_ms=received_unix_ms,
        )
        for prompt in completion.prompts
    ]


def _check_prompts(completion: Completion) -> None:
    prompts = completion.prompts
    if isinstance(completion.prompt, list) and len({type(part) for part in completion.prompt}) > 1:
        problem = "prompt: give a text, a list of texts, a list of token ids, or a list of such lists."
        raise HeadraceError("invalid_value", problem, param="prompt")
    if not all(prompts):
        raise HeadraceError("invalid_value", "prompt: send some text, or some token ids.", param="prompt")
    if len(prompts) * completion.choices > MAX_RESPONSES:
        problem = (
            f"{len(prompts)} prompts times n are more than the {MAX_RESPONSES} of one request: send several."
        )
        raise HeadraceError("invalid_value", problem, param="prompt")
