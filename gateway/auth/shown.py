"""What a request shows of who asks: its credential and its address. Pure; checks nothing.

A credential stands in the Authorization header or, since a browser's WebSocket can set none, in a
subprotocol. Never in a URL, which ends up in logs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from starlette.requests import HTTPConnection

IN_SUBPROTOCOL = ("headrace.token.", "openai-insecure-api-key.")
_FORWARDED = ("x-forwarded-for", "x-forwarded-host", "forwarded", "via")


def credential_of(connection: HTTPConnection) -> str | None:
    """None: it shows none."""
    kind, _, value = connection.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip() or None
    for offered in connection.scope.get("subprotocols") or ():
        for prefix in IN_SUBPROTOCOL:
            if offered.startswith(prefix):
                return str(offered).removeprefix(prefix) or None
    return None


def open_subprotocol(offered: Iterable[str]) -> str | None:
    """The first that is no credential: a server says aloud which one it takes."""
    return next((name for name in offered if not name.startswith(IN_SUBPROTOCOL)), None)


def address_of(connection: HTTPConnection) -> str:
    """Whom limits by address count together. An IPv6 client has its whole /64."""
    return address_of_host(connection.client.host if connection.client is not None else "")


def address_of_host(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host


def is_of_this_machine(connection: HTTPConnection) -> bool:
    """Not through a proxy that stands here, either."""
    here = is_loopback_host(connection.client.host if connection.client is not None else "")
    return here and not any(name in connection.headers for name in _FORWARDED)


@lru_cache(maxsize=1024)
def is_loopback_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
