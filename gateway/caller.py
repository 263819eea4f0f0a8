"""Who asks: found out once for each connection, by whatever authenticates it."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.ids import TenantId
from schemas.quota import AS_CONFIGURED, OwnQuota


@dataclass(frozen=True, slots=True)
class Caller:
    tenant: TenantId
    quota: OwnQuota = AS_CONFIGURED


LOCAL = Caller(TenantId("local"))  # everyone, where no authentication is configured
