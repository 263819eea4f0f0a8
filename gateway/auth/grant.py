"""What a credential gives to who shows it."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.caller import Caller
from schemas.errors import HeadraceError


@dataclass(frozen=True, slots=True)
class Grant:
    """``key_id``: the API key it comes from, whose end is its own; empty: from no key. ``until_unix_s``: when
    whatever it opened is closed; 0: never. ``origin``: the only page that may show it; empty: any.
    ``may_mint``: it may have browser tokens made."""

    caller: Caller
    key_id: str = ""
    until_unix_s: float = 0.0
    origin: str = ""
    may_mint: bool = True


def refused(message: str) -> HeadraceError:
    return HeadraceError("invalid_api_key", message)
