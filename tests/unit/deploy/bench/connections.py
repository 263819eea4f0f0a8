"""A transport that keeps what is written, for connections that are fed by hand."""

from __future__ import annotations

import asyncio

from deploy.bench.exchange import Exchange, Recorder
from deploy.bench.plan import Address, Api
from deploy.bench.streams import stream_of

ADDRESS = Address("h", 80, False, "/v1/x")


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended


def exchange(api: Api, due_s: float = 0.0) -> Exchange:
    return Exchange(Recorder(0.0, 1e9), stream_of(api, keep_text=True), due_s, asked_tokens=2)
