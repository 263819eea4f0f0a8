"""Short-lived tokens that a page may hold: signed with the gateways' common secret, kept nowhere. Pure.

Any gateway of the same ``security.secret`` reads them. One lives no longer than the key or JWT that it was
made with: it names the key, whose revocation ends it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.auth.grant import Grant, refused
from gateway.caller import Caller
from schemas.ids import TENANT_PATTERN, TenantId
from schemas.quota import AS_CONFIGURED, OwnQuota

PREFIX = "hrt."
_PURPOSE = b"browser-token\x00"


class _Claims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``expires_unix_s``: until when a connection may be opened with it."""

    tenant: Annotated[TenantId, Meta(pattern=TENANT_PATTERN)]
    expires_unix_s: int
    quota: OwnQuota = AS_CONFIGURED
    key_id: str = ""
    until_unix_s: float = 0.0
    origin: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Claims)


def mint(secret: bytes, grant: Grant, *, expires_unix_s: int, origin: str) -> str:
    claims = _Claims(
        tenant=grant.caller.tenant,
        expires_unix_s=expires_unix_s,
        quota=grant.caller.quota,
        key_id=grant.key_id,
        until_unix_s=grant.until_unix_s,
        origin=origin,
    )
    body = _to_text(_encoder.encode(claims))
    return f"{PREFIX}{body}.{_signature(secret, body)}"


def read(secret: bytes, token: str, now_unix_s: float) -> Grant:
    """Whether its key still counts is not looked at here. Raises ``invalid_api_key``."""
    body, _, signature = token.removeprefix(PREFIX).rpartition(".")
    if not hmac.compare_digest(signature.encode(), _signature(secret, body).encode()):
        raise refused("This token was not made here: ask for a new one.")
    try:
        claims = _decoder.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (msgspec.DecodeError, binascii.Error, UnicodeDecodeError):
        raise refused("This token is of another version: ask for a new one.") from None
    if now_unix_s >= claims.expires_unix_s:
        raise refused("This token has expired: ask for a new one.")
    return Grant(
        Caller(claims.tenant, claims.quota),
        key_id=claims.key_id,
        until_unix_s=claims.until_unix_s,
        origin=claims.origin,
        may_mint=False,
    )


def _signature(secret: bytes, body: str) -> str:
    return _to_text(hmac.new(secret, _PURPOSE + body.encode(), hashlib.sha256).digest())


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
