"""How far away a client is: the kernel's own estimate of the connection's round trip time, at no cost to the
client. Must not know any route.

TCP_INFO (tcp(7)) smooths it over what the connection has carried; on a new connection it is the handshake's.
Behind a proxy it is the way to the proxy, and on other systems than Linux it is not known.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TRANSPORT = "headrace.transport"  # in the state of every ASGI scope of the connection
_RTT = struct.Struct("=I")
_RTT_AT = 68  # tcpi_rtt of linux/tcp.h's struct tcp_info: eight bytes, then the 16th 32-bit number, in us


class MeasuredHttp(HttpToolsProtocol):
    """uvicorn's HTTP; a WebSocket that a connection becomes takes its state over."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, _TRANSPORT: transport}


def transport_of(scope: Mapping[str, Any]) -> asyncio.Transport | None:
    """Of an ASGI scope's connection; None where it did not come over this server."""
    return cast("asyncio.Transport | None", scope.get("state", {}).get(_TRANSPORT))


def rtt_ms(scope: Mapping[str, Any]) -> float | None:
    """Of an ASGI scope's connection; about 5 us. None where it cannot be told."""
    transport = transport_of(scope)
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is None or sys.platform != "linux":
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + _RTT.size)
    except OSError:  # not TCP, or closed
        return None
    measured_us: int = _RTT.unpack_from(info, _RTT_AT)[0]
    return measured_us / 1000
