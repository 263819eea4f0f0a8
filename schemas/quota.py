"""What a tenant may use: as its key or token says it, and as it counts. In both, 0 is no limit."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Limit = Annotated[int, Meta(ge=0)]  # 0: none


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens are those of prompts and of completions. A response is concurrent from when it is accepted to
    its end."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_responses: int = 0


class OwnQuota(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Of a stored key, or of a token's claims. Of what it does not name, the configuration decides."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent_responses: Limit | None = None

    def over(self, configured: Quota) -> Quota:
        return Quota(
            requests_per_minute=_first(self.requests_per_minute, configured.requests_per_minute),
            tokens_per_minute=_first(self.tokens_per_minute, configured.tokens_per_minute),
            concurrent_responses=_first(self.concurrent_responses, configured.concurrent_responses),
        )


AS_CONFIGURED = OwnQuota()


def _first(own: int | None, configured: int) -> int:
    return configured if own is None else own
