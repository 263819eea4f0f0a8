"""Which responses have a client at another gateway, and telling the others of those that have one here.

A response whose connection broke is cancelled after the grace time by the gateway that saw it break. Its
client may be back at another one by then: that one says so, at once, three times in a grace time, and when
it has been cut off and is back. Core messages, not stored: they are about now; and silence means something
only to who hears. Must not know what a response is.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

import nats.errors
from nats.aio.msg import Msg

from broker import subjects
from broker.connection import Broker
from schemas.ids import GatewayId, ResponseId

log = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.1
HEARING_LIMIT_S = 2.0


class Attendance:
    """``attended``: the responses to speak of. ``on_heard`` is called for what another gateway attends."""

    def __init__(
        self,
        broker: Broker,
        gateway: GatewayId,
        *,
        grace_s: float,
        attended: Callable[[], Iterable[ResponseId]],
        on_heard: Callable[[ResponseId], None],
    ) -> None:
        self._broker = broker
        self._me = gateway.encode()
        self._interval_s = max(MIN_INTERVAL_S, grace_s / 3)
        self._attended = attended
        self._reconnected = asyncio.Event()
        self._on_heard = on_heard
        self._own_voice = subjects.own_voice(gateway)
        self._calls = itertools.count()
        self._called: dict[bytes, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Never returns."""
        subscription = await self._broker.nc.subscribe(subjects.attend(ResponseId("*")), cb=self._heard)
        self._broker.on_reconnect(self._reconnected.set)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._reconnected.wait()
                self._reconnected.clear()
                for response in list(self._attended()):
                    await self.tell(response)
        finally:
            self._broker.off_reconnect(self._reconnected.set)
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as error:
                log.debug("unsubscribe: %s", error)

    async def tell(self, response: ResponseId) -> None:
        if not self._broker.connected:
            return
        try:
            await self._broker.nc.publish(subjects.attend(response), self._me)
        except nats.errors.Error as error:
            log.debug("attendance of %s was not told: %s", response, error)

    async def hears(self) -> bool:
        """Whether all that others have said up to now was heard: they and this call come in one order. Not so
        where the link is dead without a word, or this process stood still and has yet to read what came."""
        call = b"%d" % next(self._calls)
        heard = self._called[call] = asyncio.get_running_loop().create_future()
        try:
            await self._broker.nc.publish(self._own_voice, call)
            async with asyncio.timeout(HEARING_LIMIT_S):
                await heard
        except (nats.errors.Error, TimeoutError):
            return False
        finally:
            del self._called[call]
        return True

    async def _heard(self, msg: Msg) -> None:
        if msg.subject == self._own_voice:
            if (heard := self._called.get(msg.data)) is not None and not heard.done():
                heard.set_result(None)
        elif msg.data != self._me:
            self._on_heard(ResponseId(msg.subject.rpartition(".")[2]))
