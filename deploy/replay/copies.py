"""The new job that runs a stored one again: what it keeps, and what is changed on the way. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from gateway.catalog import ModelCard
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ResponseId, SessionToken
from schemas.job import Job, OutputShape, Route
from schemas.sampling import Sampling

SESSION = SessionToken("replay")  # `nats sub 'hr.reply.*.*.replay.>'` shows replays and nothing else

Changes = dict[str, object]


class ChangeError(ValueError):
    """The message is for the operator."""


def parse_changes(pairs: Sequence[str]) -> Changes:
    """``name=value`` of ``Sampling``; a value is JSON, or text where it is none. Raises ``ChangeError``."""
    changes: Changes = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ChangeError(f"--set {pair}: expected NAME=VALUE, such as temperature=0")
        if name not in Sampling.__struct_fields__:
            known = ", ".join(sorted(Sampling.__struct_fields__))
            raise ChangeError(f"--set {pair}: there is no parameter {name!r}; there are {known}")
        try:
            changes[name] = json.loads(text)
        except ValueError:
            changes[name] = text
    apply_changes(Sampling(max_tokens=1), changes)
    return changes


def apply_changes(sampling: Sampling, changes: Changes) -> Sampling:
    """Raises ``ChangeError``."""
    if not changes:
        return sampling
    for name, value in changes.items():  # one at a time: msgspec says what it minds, and here which one
        try:
            whole = {**msgspec.to_builtins(sampling, str_keys=True), name: value}
            sampling = msgspec.convert(whole, Sampling, strict=False, str_keys=True)
        except msgspec.ValidationError as error:
            problem = str(error).partition(" - at ")[0]
            raise ChangeError(f"--set {name}={json.dumps(value)}: {problem}") from error
    return sampling


def check_fits(prompt_tokens: int, sampling: Sampling, card: ModelCard) -> None:
    """Raises ``HeadraceError``: context_length_exceeded, invalid_value, unsupported_parameter."""
    if sampling.min_tokens > sampling.max_tokens:
        raise HeadraceError("invalid_value", f"min_tokens is more than max_tokens, {sampling.max_tokens}.")
    if prompt_tokens + sampling.max_tokens > card.max_model_len:
        raise HeadraceError(
            "context_length_exceeded",
            f"A prompt of {prompt_tokens} tokens and max_tokens {sampling.max_tokens} exceed the context of "
            f"{card.name}, {card.max_model_len}: add --set max_tokens=N.",
        )
    if sampling.structured is not None and not card.structured_output:
        raise HeadraceError("unsupported_parameter", f"{card.name} is served without structured output.")


def copy_of(
    job: Job,
    *,
    response: ResponseId,
    gateway: GatewayId,
    card: ModelCard,
    sampling: Sampling,
    prompt_ids: tuple[int, ...],
    shape: OutputShape | None,
    keep_class: bool,
    now_unix_ms: int,
) -> Job:
    """A response of the same tenant that no conversation, cache, limit or client's trace knows of. Behind
    everybody's work, unless it keeps its class; with a deadline as long as the original's."""
    presentation = msgspec.structs.replace(
        job.presentation,
        conversation=None,
        previous_response_id=None,
        store=False,
        memory="none",
        cache="none",
        shape=shape,
        route=Route(requested=card.name, reason=f"replay of {job.response}"),
    )
    return msgspec.structs.replace(
        job,
        response=response,
        session=SESSION,
        gateway=gateway,
        model=card.token,
        model_name=card.name,
        priority=job.priority if keep_class else "batch",
        lane=job.lane if keep_class else "over",
        prompt_ids=prompt_ids,
        sampling=sampling,
        presentation=presentation,
        created_unix_ms=now_unix_ms,
        deadline_unix_ms=now_unix_ms + max(1000, job.deadline_unix_ms - job.created_unix_ms),
        traceparent=None,
        replay_of=job.response,
        request_digest="",
        request_id="",
        held=False,
        received_unix_ms=0.0,
        edge_ms=0.0,
    )
