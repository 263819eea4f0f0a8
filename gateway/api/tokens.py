"""``POST /v1/tokens``: a short-lived token for a browser, made with an API key by the page's own server."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.front import Front, grant_of
from gateway.api.http_request import read_object
from gateway.api.parse_json import to_request
from gateway.auth.door import Door
from schemas.errors import HeadraceError

PageOrigin = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9+.-]*://[^/\s]+\Z", max_length=256)]


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``origin``: the only page's that may use it, as ``https://chat.example.com``."""

    expires_in_s: Annotated[int, Meta(ge=1)] = 600
    origin: PageOrigin | None = None


class Token(msgspec.Struct, frozen=True):
    """``expires_at``: unix seconds, after which it opens nothing more."""

    value: str
    expires_at: int
    object: str = "token"


async def create(front: Front, door: Door | None, request: Request) -> Response:
    """Raises ``HeadraceError``."""
    wanted = to_request(await read_object(request, front.limits.max_message_bytes), TokenRequest)
    if door is None:
        raise HeadraceError("not_found", "Nobody is authenticated here: no token is needed.")
    if wanted.expires_in_s > door.max_token_s:
        problem = f"expires_in_s: at most {door.max_token_s} (auth.max_token_s)."
        raise HeadraceError("invalid_value", problem, param="expires_in_s")
    value, expires_at = door.mint(grant_of(request), lives_s=wanted.expires_in_s, origin=wanted.origin or "")
    return Response(
        msgspec.json.encode(Token(value, expires_at)),
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )
