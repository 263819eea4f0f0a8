"""Which requests may share an answer, and the key under which identical ones meet. Pure.

A field of the job is part of the key unless it stands here as one that does not matter to the tokens: so a
new field can cost a hit, and never bring a wrong answer.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import msgspec

from schemas.job import Job
from schemas.sampling import Sampling

CacheWish = Literal["auto", "on", "off"]  # auto: where the answer is always the same

MAX_SHARED_TOKENS = 1 << 16  # a shared answer is repeated in one message, which NATS takes up to 1 MiB of

# Whose it is, when, in which words it was asked, where it waits: none of it changes the tokens.
JOB_APART = frozenset(
    {
        "cache_salt",  # a function of the tenant
        "created_unix_ms",
        "deadline_unix_ms",
        "edge_ms",
        "gateway",
        "held",
        "lane",
        "model_name",
        "presentation",  # its own fields below
        "priority",
        "received_unix_ms",
        "replay_of",
        "request_digest",
        "response",
        "sampling",  # its own fields, too
        "session",
        "traceparent",
    }
)
PRESENTATION_APART = frozenset(
    {
        "api",
        "cache",
        "conversation",
        "echo",
        "input",
        "memory",
        "previous_response_id",
        "rendering",  # it shows in the prompt's ids
        "route",
        "said",
        "store",
        "user_text",
    }
)

_encoder = msgspec.msgpack.Encoder()


def may_share(sampling: Sampling, wish: CacheWish) -> bool:
    if wish == "off" or sampling.logprobs is not None or sampling.max_tokens > MAX_SHARED_TOKENS:
        return False
    return wish == "on" or sampling.temperature == 0 or sampling.top_k == 1


def cache_key(secret: bytes, job: Job) -> str:
    """HMAC-SHA256 over everything that decides what the tokens are and where they end, tenant included: equal
    questions of two tenants never meet, and a key tells nothing about a prompt."""
    decides = (
        *_fields(job, JOB_APART),
        *_fields(job.presentation, PRESENTATION_APART),
        *_fields(job.sampling, frozenset()),
    )
    message = b"response-cache\x00" + _encoder.encode(decides)
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def tenant_tag(secret: bytes, job: Job) -> str:
    """Groups a tenant's keys, without its name."""
    return hmac.new(secret, b"response-cache-tenant\x00" + job.tenant.encode(), hashlib.sha256).hexdigest()[
        :24
    ]


def _fields(struct: msgspec.Struct, apart: frozenset[str]) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = []
    for name in struct.__struct_fields__:
        if name not in apart:
            value = getattr(struct, name)
            fields.append((name, sorted(value.items()) if isinstance(value, dict) else value))
    return fields
