"""The one pull loop: long-lived pull requests to a JetStream consumer, for the job queue and the log tail.

Pure accounting of what is asked for and has come, and the subscription under it. Must not know what the
messages are, nor which consumer is worth asking. Semantics: ADR-13 and ADR-37 of the NATS project.
A message costs about 2 us here, on top of what it costs to be read (``broker/nats_parser.py``).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import msgspec
import nats.errors
from nats.aio.subscription import Subscription

from broker import metrics
from broker.connection import Broker
from broker.jetstream import API
from broker.nats_client import Headers, parse_headers

log = logging.getLogger(__name__)

Loss = Literal["reconnect", "silence", "no_consumer", "unclear"]


class AckInfo(NamedTuple):
    """What JetStream tells about a delivery in its ack subject. ``pending``: messages behind it."""

    stream: str
    consumer: str
    delivered: int
    stream_seq: int
    consumer_seq: int
    stored_unix_ns: int
    pending: int


def parse_ack_subject(subject: str) -> AckInfo:
    """Both forms: ``$JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<ns>.<pending>`` and the one with
    ``<domain>.<account hash>`` before the stream and a random token at the end. Raises ``ValueError``."""
    stream, consumer, *numbers = _ack_tokens(subject)
    return AckInfo(stream, consumer, *map(int, numbers))


def _ack_tokens(subject: str) -> list[str]:
    tokens = subject.split(".")
    if len(tokens) < 9 or tokens[0] != "$JS" or tokens[1] != "ACK" or len(tokens) == 10:
        raise ValueError(f"not an ack subject: {subject}")
    first = 2 if len(tokens) == 9 else 4  # the random token may be absent
    return tokens[first : first + 7]


class Delivery:
    """One message as a consumer delivered it. ``headers`` is None where there are none."""

    __slots__ = ("_ack", "ack_subject", "consumer_seq", "data", "headers", "pending", "stream_seq", "subject")

    def __init__(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, ack_subject: str
    ) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        self.ack_subject = ack_subject
        ack = self._ack = _ack_tokens(ack_subject)
        self.stream_seq = int(ack[3])
        self.consumer_seq = int(ack[4])
        self.pending = int(ack[6])

    @property
    def delivered(self) -> int:
        return int(self._ack[2])

    @property
    def stored_unix_ms(self) -> float:
        """To the microsecond, as headers of other ways to read the same message tell it."""
        return int(self._ack[5]) // 1000 / 1000


class _PullRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    batch: int
    expires: int = 0  # ns
    idle_heartbeat: int = 0  # ns; at most half of expires
    no_wait: bool = False


class PullLoop:
    """Pull requests to one consumer, and their answers.

    ``outstanding``: messages asked for that may still come. ``behind``: messages known to wait in the
    consumer for the next request. ``heard_empty_s``: when it last said that nothing waits (loop's clock).
    ``lost``: why the requests in flight count no more; the owner then puts things right (a deleted
    consumer, a gap) and calls ``open`` again, which takes a fresh inbox, so that nothing of the old one is
    ever counted. ``on_news`` is called whenever the owner
    has something to look at. Both callbacks run in the event loop, once a message, and must not block.
    """

    def __init__(
        self,
        broker: Broker,
        stream: str,
        consumer: str,
        *,
        on_delivery: Callable[[Delivery], None],
        on_news: Callable[[], None],
        silence_s: float,
    ) -> None:
        self.consumer = consumer
        self.outstanding = 0
        self.behind = 0
        self.heard_empty_s = -math.inf
        self.lost: Loss | None = None
        self.failure: BaseException | None = None
        self._broker = broker
        self._stream = stream
        self._on_delivery = on_delivery
        self._on_news = on_news
        self._silence_s = silence_s
        self._heard_at = 0.0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._clock = asyncio.get_running_loop().time
        broker.on_reconnect(self._reconnected)

    @property
    def expecting(self) -> bool:
        return self.outstanding > 0 and self.lost is None

    async def open(self, consumer: str | None = None) -> None:
        """A fresh inbox with nothing outstanding. Raises ``nats.errors.Error`` when closed for good."""
        await self._unsubscribe()
        if consumer is not None:
            self.consumer = consumer
        self.outstanding = self.behind = 0
        self.lost = None
        self._inbox = self._broker.nc.new_inbox()
        self._subscription = await self._broker.nc.subscribe_short(self._inbox, self._receive)

    async def pull(self, batch: int, *, expires_s: float, heartbeat_s: float = 0.0) -> None:
        """Ask for ``batch`` more messages; what has not come after ``expires_s`` is asked for no more."""
        await self._ask(_PullRequest(batch, int(expires_s * 1e9), int(heartbeat_s * 1e9)))

    async def probe(self, batch: int) -> None:
        """Ask for what waits right now, ``batch`` messages at most: nothing may be outstanding."""
        await self._ask(_PullRequest(batch, no_wait=True))

    async def _ask(self, request: _PullRequest) -> None:
        subject = f"{API}.CONSUMER.MSG.NEXT.{self._stream}.{self.consumer}"
        self.outstanding += request.batch
        self._heard_at = max(self._heard_at, self._clock())
        try:
            await self._broker.nc.publish(subject, msgspec.json.encode(request), reply=self._inbox)
        except nats.errors.Error:
            self._lose("reconnect")

    def check_silence(self) -> None:
        """To be called about once a second: nothing heard for too long while something is outstanding."""
        if self.expecting and self._clock() - self._heard_at > self._silence_s:
            self._lose("silence")

    async def close(self) -> None:
        """Stop listening. What was still outstanding is dropped; the server redelivers after ack_wait."""
        self._broker.off_reconnect(self._reconnected)
        self._inbox = ""
        await self._unsubscribe()

    async def _unsubscribe(self) -> None:
        if self._subscription is not None:
            try:
                await self._broker.nc.unsubscribe_short(self._subscription)
            except nats.errors.Error as error:  # closed or reconnecting: the server has forgotten it anyway
                log.debug("unsubscribe of %s: %s", self.consumer, error)
            self._subscription = None

    def _receive(self, subject: str, reply: str, header_lines: bytes, data: bytes) -> None:
        """Of the newest inbox only: the one before is not taken from any more."""
        self._heard_at = self._clock()
        headers = parse_headers(header_lines) if header_lines else None
        if not reply.startswith("$JS.ACK."):
            self._status(headers or {})
            return
        try:
            delivery = Delivery(subject, data, headers, reply)
        except ValueError as error:  # not JetStream's: an inbox is open to whoever may publish to it
            log.warning("dropped a message: %s", error)
            return
        self.outstanding -= 1
        try:
            self.behind = delivery.pending
            self._on_delivery(delivery)
        except Exception as error:  # a bug of the owner: kept, because nats-py would only log it
            self.failure = error
            self._on_news()

    def _status(self, headers: Headers) -> None:
        """Requests that ended unfulfilled tell how much of them is open; ``100`` is a sign of life."""
        status = headers.get("Status")
        if status == "100":
            return
        text = headers.get("Description", "")
        if status == "404":  # only a probe ends so, and nothing else is outstanding beside one
            self.outstanding = self.behind = 0
            self.heard_empty_s = self._clock()
            self._on_news()
        elif status == "503" or (status == "409" and "deleted" in text.lower()):
            self._lose("no_consumer")
        elif (open_messages := headers.get("Nats-Pending-Messages", "")).isdigit():
            self.outstanding = max(0, self.outstanding - int(open_messages))
            self.behind = 0  # or the request would have been filled
            self.heard_empty_s = self._clock()
            self._on_news()
        else:  # an ending that does not say what it ends: count anew
            log.warning("pull on %s ended with %s %s", self.consumer, status, text)
            self._lose("unclear")

    def _reconnected(self) -> None:
        self._lose("reconnect")

    def _lose(self, why: Loss) -> None:
        if self.lost is None:
            self.lost = why
            metrics.PULL_RESETS.labels(reason=why).inc()
        self._on_news()
