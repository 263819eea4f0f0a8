"""A request and its prompt to the job that goes into the queue. Pure, but for the time that comes in.

Whatever another gateway needs to show the response, after a death of this one, must be in the job.
"""

from __future__ import annotations

import hashlib

import msgspec

from gateway.catalog import ModelCard
from gateway.context import present
from gateway.conversation import Opened
from gateway.generation import Generation
from gateway.prompt import Prompt
from schemas.ids import GatewayId, cache_salt, session_token
from schemas.job import Job, Lane, Presentation, Route

_encoder = msgspec.msgpack.Encoder()


def make_job(
    generation: Generation,
    card: ModelCard,
    route: Route,
    opened: Opened,
    prompt: Prompt,
    *,
    gateway: GatewayId,
    lane: Lane,
    secret: bytes,
    now_unix_ms: int,
    max_deadline_s: float,
) -> Job:
    """``max_deadline_s``: what the client asked for is cut to it."""
    user_text, messages, said = present(generation.messages)
    deadline_s = min(generation.deadline_s or max_deadline_s, max_deadline_s)
    return Job(
        response=opened.response,
        tenant=generation.tenant,
        session=session_token(secret, generation.tenant, opened.context.session or opened.response),
        gateway=gateway,
        model=card.token,
        model_name=card.name,
        priority=generation.priority,
        lane=lane,
        prompt_ids=prompt.ids,
        sampling=prompt.sampling,
        presentation=Presentation(
            api=generation.api,
            stop=generation.stop,
            echo=generation.echo,
            conversation=generation.conversation,
            previous_response_id=generation.previous_response_id,
            user_text=user_text,
            store=generation.store,
            input=messages,
            said=said,
            memory=opened.memory,
            shape=prompt.shape,
            rendering=prompt.rendering,
            route=route,
        ),
        created_unix_ms=now_unix_ms,
        deadline_unix_ms=now_unix_ms + int(deadline_s * 1000),
        cache_salt=cache_salt(secret, generation.tenant),
        traceparent=generation.traceparent,
        request_id=generation.request_id,
        request_digest="" if generation.idempotency_key is None else request_digest(generation),
    )


def sent(job: Job, received_unix_ms: float, now_unix_ms: float) -> Job:
    """With what its edge took so far: it goes to the queue now. ``received_unix_ms`` 0: not told."""
    if not received_unix_ms:
        return job
    edge_ms = max(0.0, now_unix_ms - received_unix_ms)
    return msgspec.structs.replace(job, received_unix_ms=received_unix_ms, edge_ms=edge_ms)


def request_digest(generation: Generation) -> str:
    """Tells a repeated request from another one that came under the same idempotency key."""
    asked = (
        generation.api,
        generation.model,
        generation.messages,
        generation.sampling,
        generation.max_tokens_given,
        generation.stop,
        generation.conversation,
        generation.previous_response_id,
        generation.priority,
        generation.deadline_s,
        generation.store,
        generation.echo,
        generation.prompt_ids,
        generation.special_tokens,
        generation.template_options,
        generation.speaker,
        generation.sibling,
        [tool.json for tool in generation.tools],
        (generation.tool_choice, generation.named_tool, generation.one_call, generation.reasoning_effort),
    )
    return hashlib.sha256(_encoder.encode(asked)).hexdigest()[:32]
