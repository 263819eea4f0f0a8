"""Connections to one address: the one that was freed last is asked next, and a new one is opened where none
is free. Opening is part of the response that needed it."""

from __future__ import annotations

import asyncio
import errno
import ssl

from deploy.bench.http_connection import HttpConnection
from deploy.bench.plan import Address, Api
from deploy.bench.streams import End
from deploy.bench.ws_connection import WsConnection

Connection = HttpConnection | WsConnection


class Unreachable(Exception):
    def __init__(self, end: End) -> None:
        super().__init__(end.reason)
        self.end = end


class Pool:
    """``opened``: how many so far."""

    def __init__(self, address: Address, api: Api, api_key: str) -> None:
        self.opened = 0
        self._address = address
        self._kind: type[HttpConnection] | type[WsConnection] = (
            WsConnection if api == "responses-ws" else HttpConnection
        )
        self._api_key = api_key
        self._tls = ssl.create_default_context() if address.tls else None
        self._free: list[Connection] = []  # bounded by what is in flight at once
        self._all: set[Connection] = set()

    async def connection(self) -> Connection:
        """Raises ``Unreachable``."""
        return self._free.pop() if self._free else await self._open()

    async def warm(self, count: int) -> None:
        """Opens so many ahead; what fails here fails again where it counts."""
        for _ in range(count):
            try:
                self._free.append(await self._open())
            except Unreachable:
                return

    def close(self) -> None:
        for connection in list(self._all):
            connection.abort()

    async def _open(self) -> Connection:
        def make() -> Connection:
            return self._kind(self._address, self._api_key, self._freed, self._gone)

        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                make, self._address.host, self._address.port, ssl=self._tls
            )
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, type(error).__name__)
            raise Unreachable(End("unreachable", name)) from error
        self.opened += 1
        self._all.add(connection)
        if isinstance(connection, WsConnection) and (refused := await connection.opened) is not None:
            raise Unreachable(refused)
        return connection

    def _freed(self, connection: Connection) -> None:
        self._free.append(connection)

    def _gone(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
