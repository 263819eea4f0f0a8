"""What a tenant may use. Stands in the configuration, in a stored API key and in a token's claims."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Limit = Annotated[int, Meta(ge=0)]  # 0: none


class Quota(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Tokens are those of prompts and of completions. A response is concurrent from when it is accepted to
    its end."""

    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    concurrent_responses: Limit = 0


UNLIMITED = Quota()
