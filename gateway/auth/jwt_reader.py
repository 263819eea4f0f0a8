"""JWTs of a configured issuer (RFC 7519, and the advice of RFC 8725): which ones count, and whom they name.

The algorithm is one of the configuration's, all asymmetric, never the token's choice; issuer, audience and
expiry must be there; no address in a header is followed.
"""

from __future__ import annotations

import logging
import re

import jwt
import msgspec

from broker.settings import ConfigError
from gateway.auth.grant import Grant, refused
from gateway.auth.jwks import Jwks
from gateway.caller import Caller
from schemas.config import Auth
from schemas.ids import TENANT_PATTERN, TenantId
from schemas.quota import AS_CONFIGURED, OwnQuota

log = logging.getLogger(__name__)
_TENANT = re.compile(TENANT_PATTERN)


class JwtReader:
    def __init__(self, config: Auth) -> None:
        """Raises ``ConfigError``."""
        for key in ("jwt_keys", "jwt_issuer", "jwt_audience"):
            if not getattr(config, key):
                raise ConfigError(f"auth.{key}: needed to check JWTs (auth.methods holds jwt)")
        self._config = config
        self.jwks = Jwks(config.jwt_keys)

    async def read(self, token: str) -> Grant:
        """Raises ``invalid_api_key``, ``auth_unavailable``."""
        config = self._config
        try:
            key = await self.jwks.find(_kid_of(token))
            if key is None:
                raise refused("This JWT is signed with a key that its issuer does not publish.")
            claims = jwt.decode(
                token,
                key,  # type: ignore[arg-type]  # a PyJWK, or what cryptography read from a file
                algorithms=list(config.jwt_algorithms),
                audience=config.jwt_audience,
                issuer=config.jwt_issuer,
                leeway=config.jwt_leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise refused("This JWT has expired: sign in again.") from None
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            log.info("a JWT is refused: %s", error)
            raise refused("This JWT is not valid here.") from None
        until_unix_s = float(claims["exp"]) + config.jwt_leeway_s
        return Grant(self._caller(claims), until_unix_s=until_unix_s)

    def _caller(self, claims: dict[str, object]) -> Caller:
        tenant = claims.get(self._config.jwt_tenant_claim)
        if not isinstance(tenant, str) or not _TENANT.match(tenant):
            raise refused(f"This JWT names no tenant in its claim {self._config.jwt_tenant_claim!r}.")
        told = claims.get(self._config.jwt_quota_claim)
        try:
            quota = AS_CONFIGURED if told is None else msgspec.convert(told, OwnQuota)
        except msgspec.ValidationError as error:
            log.warning("a JWT of tenant %s is refused, its quota does not read: %s", tenant, error)
            raise refused(f"This JWT's claim {self._config.jwt_quota_claim!r} is no quota.") from None
        return Caller(TenantId(tenant), quota)


def _kid_of(token: str) -> str | None:
    """Raises ``jwt.PyJWTError``."""
    kid = jwt.get_unverified_header(token).get("kid")
    return kid if isinstance(kid, str) else None
