"""The short way to a client: bytes to the connection in one call, where ASGI takes five coroutines.

Only for what follows an answer that was begun over ASGI, and only while the connection takes it at once: else
``is_open`` is False, and the caller goes the long way, which waits. Must not know what the bytes mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from broker.metrics import SENT_BYTES, SENT_MESSAGES
from gateway.held import Held
from gateway.round_trip import transport_of

_WRITES, _BYTES = SENT_MESSAGES.labels(transport="sse"), SENT_BYTES.labels(transport="sse")


class Outlet(Protocol):
    @property
    def is_open(self) -> bool:
        """Nothing waits before, and the connection will take what is put now."""
        ...

    def put(self, *data: bytes) -> None:
        """WebSocket messages of UTF-8 text, or pieces of an HTTP answer's body, in one write."""
        ...

    def hold(self, *data: bytes) -> None:
        """The same, and it may wait for what is put next (``gateway/held.py``)."""
        ...


class HasOutlet(ABC):
    """A protocol (asyncio's) that has one. ``scope``: the request or socket that it is for. A base class and
    no structural type, which ``isinstance`` would compare name by name: 5 us for each answer."""

    __slots__ = ()

    @abstractmethod
    def outlet(self, scope: Mapping[str, Any]) -> Outlet | None: ...


def outlet_of(scope: Mapping[str, Any]) -> Outlet | None:
    """Of an ASGI scope's connection; None where there is no short way."""
    transport = transport_of(scope)
    if transport is None:
        return None
    protocol = transport.get_protocol()
    return protocol.outlet(scope) if isinstance(protocol, HasOutlet) else None


class Body:
    """Of an HTTP answer whose length is not known (``Transfer-Encoding: chunked``)."""

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle, flow: FlowControl) -> None:
        self._cycle = cycle
        self._flow = flow
        self._transport = cast(Held, cycle.transport)

    @property
    def is_open(self) -> bool:
        cycle = self._cycle
        ended = cycle.response_complete or cycle.disconnected or self._transport.is_closing()
        return bool(cycle.response_started and cycle.chunked_encoding) and not (
            ended or self._flow.write_paused
        )

    def put(self, *data: bytes) -> None:
        self._transport.write(self._framed(data))

    def hold(self, *data: bytes) -> None:
        self._transport.hold(self._framed(data))

    def _framed(self, data: Sequence[bytes]) -> bytes:
        for piece in data:
            count_events(piece)
        return b"".join(map(chunk, data))


def count_events(data: bytes) -> None:
    """Of an answer's body, whichever way it goes."""
    _WRITES.value += 1
    _BYTES.value += len(data)


def text_frame(data: bytes) -> bytes:
    """A whole WebSocket message as a server sends it without extensions, not masked (RFC 6455, 5.2)."""
    size = len(data)
    if size < 126:
        return b"\x81%c%b" % (size, data)
    if size < 1 << 16:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), data)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), data)


def chunk(data: bytes) -> bytes:
    """RFC 9112 section 7.1. Empty data would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
