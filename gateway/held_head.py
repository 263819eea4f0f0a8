"""A connection's way out, on which the head of an answer waits for the beginning of its body: one write for
both, which spares a system call here, a packet, and the client its waking.

For no longer than ``HEAD_WAIT_S``: a client that waits in the queue knows that it was accepted. Must not know
what is answered.
"""

from __future__ import annotations

import asyncio
from typing import Any

HEAD_WAIT_S = 0.01
_GOOD = b"HTTP/1.1 200 "  # not 100, for which a client waits, nor errors, which are seldom


class HeldHead:
    """An ``asyncio.Transport`` around another one; see uvicorn's ``RequestResponseCycle.send``, which writes
    head and body apart."""

    __slots__ = ("_head", "_timer", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._head = b""
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        if self._timer is not None:
            self.transport.write(self._taken() + data)
        elif data.startswith(_GOOD):
            self._head = data
            self._timer = asyncio.get_running_loop().call_later(HEAD_WAIT_S, self._let_go)
        else:
            self.transport.write(data)

    def close(self) -> None:
        self._let_go()
        self.transport.close()

    def _let_go(self) -> None:
        head = self._taken()
        if head and not self.transport.is_closing():
            self.transport.write(head)

    def _taken(self) -> bytes:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        head, self._head = self._head, b""
        return head
