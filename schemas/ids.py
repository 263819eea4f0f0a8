"""The names of things: how each id is made, checked and turned into a subject token.

A subject token is one dot-free part of a NATS subject. Whatever a client chose (a session name, a model
id) is hashed or slugged before it becomes one, so that no input can address another subject.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from functools import lru_cache
from typing import NewType

from ulid import ULID

from schemas.errors import HeadraceError

ResponseId = NewType("ResponseId", str)  # resp_<ULID>: one generation, the unit of everything
SessionToken = NewType("SessionToken", str)  # [A-Za-z0-9_-]{1,64}: groups one conversation's replies
TenantId = NewType("TenantId", str)  # who is billed and limited
GatewayId = NewType("GatewayId", str)  # new at every boot, so that no two lives share a reply prefix
WorkerId = NewType("WorkerId", str)  # new at every boot
ModelToken = NewType("ModelToken", str)  # slug of the model id + short hash of id and revision
Fence = NewType("Fence", int)  # stream sequence of a writer's acked Started

TOKEN_PATTERN = r"^[A-Za-z0-9_-]{1,64}\Z"
RESPONSE_PATTERN = r"^resp_[0-7][0-9A-HJKMNP-TV-Z]{25}\Z"
TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}\Z"
_TOKEN, _RESPONSE = re.compile(TOKEN_PATTERN), re.compile(RESPONSE_PATTERN)


def new_response_id() -> ResponseId:
    """A fresh id; ULIDs sort by creation time (https://github.com/ulid/spec)."""
    return ResponseId(f"resp_{ULID()}")


def new_process_id(kind: str) -> str:
    """A subject token for one life of a process, such as ``gw-8f14e45f``."""
    return f"{kind}-{secrets.token_hex(4)}"


def parse_response_id(text: str) -> ResponseId:
    """Check a response id that came from outside. Raises ``HeadraceError(response_not_found)``:
    an id that cannot exist is answered like one that does not."""
    if not _RESPONSE.match(text):
        raise HeadraceError("response_not_found", "No response has this id: ids look like resp_01J….")
    return ResponseId(text)


def parse_token(text: str) -> str:
    """Check one subject token. Raises ``ValueError``; used on our own configuration and subjects."""
    if not _TOKEN.match(text):
        raise ValueError(f"{text!r} is not a subject token: 1 to 64 of A-Z a-z 0-9 _ -")
    return text


def keyed_response_id(secret: bytes, tenant: TenantId, key: str) -> ResponseId:
    """The id of the response to a request with this idempotency key: a pure function of tenant and key, so
    that any gateway finds the first one by its id, for as long as the queue keeps its job. The ULID's time
    is 0, which tells such an id from one that was made at some time."""
    message = b"\x00".join((b"idempotency", tenant.encode(), key.encode()))
    digest = hmac.new(secret, message, hashlib.sha256).digest()
    return ResponseId(f"resp_{ULID(bytes(6) + digest[:10])}")


def call_id(response: ResponseId, ordinal: int) -> str:
    """Of a response's tool call: every gateway gives the same. Its last nine characters tell it from others,
    for models that know no longer ones."""
    return f"call_{response.removeprefix('resp_')}{ordinal:03}"


def session_token(secret: bytes, tenant: TenantId, name: str) -> SessionToken:
    """The subject token of a tenant's session: HMAC-SHA256 over tenant and name, so that equal names
    of two tenants never meet and a token tells nothing about the name."""
    return SessionToken(_keyed(secret, b"session", tenant, name))


@lru_cache(maxsize=1024)
def cache_salt(secret: bytes, tenant: TenantId) -> str:
    """Keeps tenants apart in the engine's prefix cache without telling the engine who they are."""
    return _keyed(secret, b"prefix-cache", tenant, "")


def _keyed(secret: bytes, purpose: bytes, tenant: str, name: str) -> str:
    message = b"\x00".join((purpose, tenant.encode(), name.encode()))
    return hmac.digest(secret, message, "sha256").hex()[:24]


def model_token(model: str, revision: str) -> ModelToken:
    """``SmolLM2-135M-Instruct`` at a revision -> ``smollm2-135m-instruct-1f0c9a2b``."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-")[:40] or "model"
    digest = hashlib.sha256(f"{model}\x00{revision}".encode()).hexdigest()[:8]
    return ModelToken(f"{slug}-{digest}")
