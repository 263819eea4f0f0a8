"""A guardian's way to the broker: the jobs of a worker process that died go back to the queue, and its card
is withdrawn. Must not know how it died, nor whether it is started again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from broker import presence
from broker.connection import Broker, BrokerClosed, BrokerUnavailable
from broker.jobs import nak_delivery
from schemas.config import Nats
from schemas.ids import WorkerId

log = logging.getLogger(__name__)

CONNECT_AGAIN_S = 2.0
FORGOTTEN_LIMIT_S = 0.5
FORGOTTEN_TRY_S = 0.1
FAREWELL_LIMIT_S = 5.0  # a card that is not withdrawn is swept soon


class Returns:
    """Connected in the background: without a broker a worker starts and stops all the same."""

    def __init__(self, config: Nats) -> None:
        self._config = config
        self._broker: Broker | None = None
        self._connected = asyncio.Event()

    async def keep_connected(self) -> None:
        """Never returns."""
        while True:
            try:
                broker = await Broker.connect(self._config, name="guardian")
            except BrokerUnavailable as error:
                log.warning("no connection to NATS yet: %s", error)
                await asyncio.sleep(CONNECT_AGAIN_S)
                continue
            self._broker = broker
            self._connected.set()
            try:
                await broker.closed()
            except BrokerClosed as error:
                log.warning("connecting to NATS anew: %s", error)
                await asyncio.sleep(CONNECT_AGAIN_S)
            finally:
                self._broker = None
                self._connected.clear()
                await broker.close()

    async def give_back(self, worker: WorkerId, ack_subjects: Sequence[str], until_s: float) -> None:
        """The jobs, as soon as there is a connection and before ``until_s`` (monotonic clock), when others
        may have them; then the card. Each ack subject is nak'ed once at most: the next nak on it would hit
        the next writer."""
        give_up_s = max(until_s if ack_subjects else 0.0, time.monotonic() + FAREWELL_LIMIT_S)
        while (broker := await self._broker_before(give_up_s)) is not None:
            await _until_forgotten(broker, worker)
            if not broker.connected:
                continue
            if time.monotonic() < until_s:
                for ack_subject in ack_subjects:
                    await nak_delivery(broker, ack_subject)
            await presence.withdraw(broker, worker)
            return

    async def _broker_before(self, limit_s: float) -> Broker | None:
        """A broker that is connected; None: not in time."""
        try:
            async with asyncio.timeout(limit_s - time.monotonic()):
                while True:
                    await self._connected.wait()
                    if (broker := self._broker) is not None:
                        await broker.wait_connected()
                        return broker
        except (TimeoutError, BrokerClosed):
            return None


async def _until_forgotten(broker: Broker, worker: WorkerId) -> None:
    """Until the server has noticed the end of the worker's connection. Before that, it would deliver the
    jobs to the pulls that the dead worker has left with it. Normally one round trip."""
    give_up_s = time.monotonic() + FORGOTTEN_LIMIT_S
    while time.monotonic() < give_up_s:
        if await presence.ping(broker, worker, FORGOTTEN_TRY_S) in ("dead", None):
            return
        await asyncio.sleep(0.002)
