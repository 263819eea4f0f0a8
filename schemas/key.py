"""An API key as it is stored: everything but its secret. The key itself is ``hr-<id>-<secret>``.

The secret has 256 random bits, so one SHA-256 of it is enough: nobody can try them all, however fast the hash
is. Slow hashes protect what people choose; here they would only make each request cost 100 ms.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from schemas.ids import TENANT_PATTERN, TenantId
from schemas.quota import AS_CONFIGURED, OwnQuota

PREFIX = "hr-"
KEY_ID_PATTERN = r"^[0-9a-f]{12}\Z"  # a subject token of the bucket
_SECRET_LENGTH = 43  # 32 bytes in base64url


class StoredKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="key"):
    """``digest``: SHA-256 of the secret's text. Times are unix milliseconds; ``expires_unix_ms`` 0: never."""

    id: Annotated[str, Meta(pattern=KEY_ID_PATTERN)]
    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    tenant: Annotated[TenantId, Meta(pattern=TENANT_PATTERN)]
    name: str = ""
    quota: OwnQuota = AS_CONFIGURED
    created_unix_ms: int
    expires_unix_ms: int = 0

    def opens_with(self, secret: str, now_unix_ms: float) -> bool:
        return hmac.compare_digest(_digest(secret), self.digest) and not self.is_over(now_unix_ms)

    def is_over(self, now_unix_ms: float) -> bool:
        return bool(self.expires_unix_ms) and now_unix_ms >= self.expires_unix_ms


class KeyText(NamedTuple):
    """A key that a client shows, in its parts; neither is checked yet."""

    id: str
    secret: str


def new_key(
    tenant: TenantId, *, name: str, quota: OwnQuota, now_unix_ms: int, expires_unix_ms: int = 0
) -> tuple[str, StoredKey]:
    """The key's text, which nobody can tell again, and what is stored of it."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    stored = StoredKey(
        id=key_id,
        digest=_digest(secret),
        tenant=tenant,
        name=name,
        quota=quota,
        created_unix_ms=now_unix_ms,
        expires_unix_ms=expires_unix_ms,
    )
    return f"{PREFIX}{key_id}-{secret}", stored


def parse_key(text: str) -> KeyText | None:
    """None: not of a key's form."""
    key_id, _, secret = text.removeprefix(PREFIX).partition("-")
    if not text.startswith(PREFIX) or len(key_id) != 12 or len(secret) != _SECRET_LENGTH:
        return None
    return KeyText(key_id, secret)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
