"""What the controller and a load process say to each other: length-prefixed MessagePack over a socket pair.
The API key goes this way, too: command lines and environments can be read by others."""

from __future__ import annotations

import asyncio

import msgspec

from deploy.bench.plan import Plan
from deploy.bench.tally import Totals, Window

_LENGTH_BYTES = 4


class Work(msgspec.Struct, tag=True):
    """Conversation k is the process's whose ``index`` is k modulo ``plan.processes``."""

    plan: Plan
    index: int
    api_key: str


class Go(msgspec.Struct, tag=True):
    """``at_s``: when the warm-up begins; ``time.monotonic()`` is the same clock in all processes."""

    at_s: float


class Stop(msgspec.Struct, tag=True):
    """Now, with what there is."""


class Ready(msgspec.Struct, tag=True):
    pass


class Counted(msgspec.Struct, tag=True):
    """Since the last one."""

    windows: dict[int, Window]


class Done(msgspec.Struct, tag=True):
    totals: Totals


ToLoad = Work | Go | Stop
ToController = Ready | Counted | Done


class Channel:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: ToLoad | ToController) -> None:
        body = msgspec.msgpack.encode(message)
        self._writer.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
        await self._writer.drain()

    async def received(self) -> ToLoad | ToController:
        """Raises ``EOFError`` when the other side is gone."""
        try:
            head = await self._reader.readexactly(_LENGTH_BYTES)
            body = await self._reader.readexactly(int.from_bytes(head, "big"))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError from error
        return _decoder.decode(body)

    def close(self) -> None:
        self._writer.close()


_decoder: msgspec.msgpack.Decoder[ToLoad | ToController] = msgspec.msgpack.Decoder(
    Work | Go | Stop | Ready | Counted | Done
)
