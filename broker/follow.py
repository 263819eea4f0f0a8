"""Follows one response's reply log, whichever gateway it belongs to: what is stored, joined to what comes.

A core subscription to the republished messages brings news in stored order; what it may have missed (before
it began, in a reconnect, on overflow) is read from the stream, by a passing consumer where it is much. Must
not know what the messages mean, but for what shows that one was missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import nats.errors
from nats.aio.msg import Msg

from broker import subjects
from broker.connection import Broker, NoAnswer
from broker.history import read_stored
from broker.jetstream import ApiError, stamp_unix_ms
from broker.replylog import decode_reply
from schemas.ids import GatewayId, ResponseId, SessionToken
from schemas.reply import Closed, Failed, Finished, ReplyMessage, Tokens

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 2.0  # of silence: a last message that was dropped leaves no gap to notice
PAUSE_S = 0.1
MAX_WAITING = 1000  # live messages kept while the stored ones are read; beyond, these are read again, too


class LogFollower:
    """``on_message(stream sequence, message, stored unix ms)`` is called in stream order in the event loop,
    each stored message once; it must not block, and an exception there ends ``run``. ``caught_up`` is set
    when all that was stored at the start has been given. ``reading``: shared by all followers of a process,
    so that few read at once: a server allows a thousand consumers, and many readers slow each other down."""

    def __init__(
        self,
        broker: Broker,
        gateway: GatewayId,
        response: ResponseId,
        session: SessionToken,
        reading: asyncio.Semaphore,
        *,
        on_message: Callable[[int, ReplyMessage, float], None],
    ) -> None:
        self.caught_up = asyncio.Event()
        self._broker = broker
        self._response = response
        self._names = subjects.reply_log(gateway, response, session)
        self._turn = reading
        self._on_message = on_message
        self._last_seq = 0
        self._last_of_part = {"t": 0, "f": 0}
        self._behind = True  # the stream has, or may have, what was not given yet
        self._reading = False  # from the stream: what is heard meanwhile waits
        self._waiting: list[Msg] = []
        self._news = asyncio.Event()
        self._failure: Exception | None = None  # of on_message, in a callback whose errors nats-py only logs

    async def run(self) -> None:
        """Until cancelled; while the broker is away, it waits. Raises ``BrokerClosed``, and ``ApiError``
        where the stream cannot be read."""
        self._broker.on_reconnect(self._fall_behind)
        subscription = None
        try:
            await self._broker.wait_connected()
            subscription = await self._broker.nc.subscribe(
                subjects.live_of_response(self._response), cb=self._heard
            )
            while True:
                if self._behind:
                    async with self._turn:
                        await self._catch_up()
                await self._wait()
        finally:
            self._broker.off_reconnect(self._fall_behind)
            if subscription is not None:
                try:
                    await subscription.unsubscribe()
                except nats.errors.Error as error:  # closed or reconnecting: nothing is subscribed any more
                    log.debug("unsubscribe from %s: %s", self._response, error)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._news.wait()
        except TimeoutError:
            self._behind = True
        self._news.clear()
        if self._failure is not None:
            raise self._failure

    async def _catch_up(self) -> None:
        """Read what is stored behind the last message given, then give what was heard meanwhile."""
        self._behind, self._reading = False, True
        first_seq = self._last_seq + 1
        try:
            await self._broker.wait_connected()
            for item in await read_stored(self._broker, subjects.REPLIES, self._names, first_seq=first_seq):
                message = decode_reply(item.subject, item.data, item.seq)
                self._give(item.subject, item.seq, message, item.stored_unix_ms)
        except (NoAnswer, ApiError) as error:
            if isinstance(error, ApiError) and not error.passing:
                raise
            log.debug("%s cannot be read yet: %s", self._response, error)
            await asyncio.sleep(PAUSE_S)
            self._fall_behind()
            return
        self._reading = False
        waiting, self._waiting = self._waiting, []
        for msg in waiting:
            self._take(msg)
        if not self._behind:
            self.caught_up.set()

    def _fall_behind(self) -> None:
        self._behind = True
        self._waiting.clear()
        self._news.set()

    async def _heard(self, msg: Msg) -> None:
        if not self._behind and not self._reading:
            try:
                self._take(msg)
            except Exception as error:
                self._failure = error
                self._news.set()
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(msg)
        else:
            self._fall_behind()

    def _take(self, msg: Msg) -> None:
        """A republished message, with the server's word for which one of its subject came before it."""
        headers = msg.headers or {}
        seq, before = int(headers["Nats-Sequence"]), int(headers["Nats-Last-Sequence"])
        if self._behind or seq <= self._last_seq:
            return
        message = decode_reply(msg.subject, msg.data, seq)
        if before > self._last_of_part[msg.subject[-1]] or self._may_miss(message):
            self._fall_behind()
            return
        self._give(msg.subject, seq, message, stamp_unix_ms(headers["Nats-Time-Stamp"]))

    def _may_miss(self, message: ReplyMessage | None) -> bool:
        """A gap on one of the two subjects shows nothing on the other: tokens rest on a Started, and an end
        that does not repeat the tokens rests on all of them."""
        if isinstance(message, Closed | Failed):
            return True
        return isinstance(message, Tokens | Finished) and message.fence > self._last_of_part["f"]

    def _give(self, subject: str, seq: int, message: ReplyMessage | None, stored_unix_ms: float) -> None:
        self._last_seq = self._last_of_part[subject[-1]] = seq
        if message is not None:
            self._on_message(seq, message, stored_unix_ms)
