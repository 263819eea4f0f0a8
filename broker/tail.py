"""A gateway's tail of all its reply logs: one consumer, stored order, no gap and no duplicate.

The consumer lives in the server's memory and is cheap to make: whatever goes wrong (a gap, a reconnect, a
consumer that is gone), a new one begins behind the last message seen. Must not know what the messages mean.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

import nats.errors

from broker import metrics, subjects
from broker.connection import Broker, NoAnswer
from broker.history import ReaderConsumer, create_reader, delete_reader
from broker.jetstream import ApiError
from broker.pull import Delivery, PullLoop
from broker.replylog import decode_reply
from schemas.ids import GatewayId, ResponseId
from schemas.reply import ReplyMessage

log = logging.getLogger(__name__)

BATCH = 2000  # asked for at once; asked again at half, so the server never waits for us
EXPIRES_S = 30.0
HEARTBEAT_S = 1.0
SILENCE_S = 2 * HEARTBEAT_S + 0.5
INACTIVE_S = 30  # the server forgets an abandoned consumer after this
REPAIR_PAUSE_S = 0.05


class ReplyTail:
    """``on_message(response, stream sequence, message, stored unix ms)`` is called in stream order, in
    the event loop; it must not block, and an exception there ends ``run``. ``ready`` is set when the first
    pull is out."""

    def __init__(
        self,
        broker: Broker,
        gateway: GatewayId,
        *,
        on_message: Callable[[ResponseId, int, ReplyMessage, float], None],
    ) -> None:
        self.ready = asyncio.Event()
        self.last_seq = 0
        self._broker = broker
        self._gateway = gateway
        self._on_message = on_message
        self._news = asyncio.Event()
        self._next_consumer_seq = 1
        self._gap = False
        self._loop = PullLoop(
            broker,
            subjects.REPLIES,
            "",
            on_delivery=self._deliver,
            on_news=self._news.set,
            silence_s=SILENCE_S,
        )

    async def run(self) -> None:
        """Never returns."""
        try:
            await self._begin()
            self.ready.set()
            while True:
                await self._round()
                await self._wait()
        finally:
            await self._loop.close()

    async def _round(self) -> None:
        self._loop.check_silence()
        if self._loop.failure is not None:
            raise self._loop.failure
        if self._gap or self._loop.lost is not None:
            log.info("tailing anew behind %d after %s", self.last_seq, self._loop.lost or "gap")
            await self._begin()
        elif self._loop.outstanding <= BATCH // 2:
            await self._pull()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._news.wait()
        except TimeoutError:
            pass  # time to look for silence
        self._news.clear()

    async def _begin(self) -> None:
        """A new consumer behind the last message, and the first pull on it."""
        while True:
            abandoned = self._loop.consumer
            try:
                await self._broker.wait_connected()
                consumer = await self._create_consumer()
                await self._loop.open(consumer)
                self._gap = False
                self._next_consumer_seq = 1
                await self._pull()
                if abandoned:
                    await delete_reader(self._broker, subjects.REPLIES, abandoned)
            except (NoAnswer, ApiError, nats.errors.Error) as error:
                if isinstance(error, ApiError) and not error.passing:
                    raise
                log.debug("cannot tail yet: %s", error)
                await asyncio.sleep(REPAIR_PAUSE_S)
            else:
                return

    async def _create_consumer(self) -> str:
        name = f"tail-{self._gateway}-{secrets.token_hex(3)}"
        config = ReaderConsumer(
            name=name,
            description=f"Headrace: gateway {self._gateway} reads its reply logs",
            filter_subject=subjects.replies_of_gateway(self._gateway),
            opt_start_seq=self.last_seq + 1,
            inactive_threshold=INACTIVE_S * 1_000_000_000,
        )
        await create_reader(self._broker, subjects.REPLIES, config)
        return name

    async def _pull(self) -> None:
        await self._loop.pull(BATCH - self._loop.outstanding, expires_s=EXPIRES_S, heartbeat_s=HEARTBEAT_S)

    def _deliver(self, delivery: Delivery) -> None:
        if self._gap:
            return
        if delivery.consumer_seq != self._next_consumer_seq:
            self._gap = True
            metrics.TAIL_GAPS.inc()
            self._news.set()
            return
        self._next_consumer_seq += 1
        if self._loop.outstanding <= BATCH // 2:
            self._news.set()
        if delivery.stream_seq <= self.last_seq:
            return  # came through the old consumer after all, while the new one was being made
        self.last_seq = delivery.stream_seq
        message = decode_reply(delivery.subject, delivery.data, delivery.stream_seq)
        if message is not None:
            response = ResponseId(delivery.subject.split(".", 4)[3])
            self._on_message(response, delivery.stream_seq, message, delivery.stored_unix_ms)
