"""The I/O of one response's reply log: claiming it, writing tokens, ending it, reading it back.

The rules are in the pure machines ``broker/log_reader.py`` and ``broker/log_writer.py``; here stand their
conditions on the server. Fences and terminals carry a ``Nats-Msg-Id``, so a try whose ack was lost is found
again by the next one (the server looks for duplicates before it looks at an expected sequence); token
messages carry no header at all, because a header doubles what they cost every reader.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec
import nats.errors

from broker import jetstream, metrics, subjects
from broker.connection import Broker, NoAnswer
from broker.history import read_since, read_stored
from broker.jetstream import (
    EXPECTED_SEQ,
    EXPECTED_SEQ_SUBJECT,
    HEADERS_ALLOWANCE,
    MSG_ID,
    ApiError,
    StoredMessage,
)
from broker.log_reader import LogReader
from schemas import codec
from schemas.errors import HeadraceError
from schemas.ids import Fence, GatewayId, ResponseId, SessionToken
from schemas.reply import (
    Closed,
    Failed,
    FenceMessage,
    Finished,
    Handoff,
    Joined,
    Parted,
    ReplyMessage,
    Started,
    Tokens,
)

log = logging.getLogger(__name__)

CLOSE_LIMIT_S = 5.0
READ_AGAIN_S = 0.02
LOOK_BACK_MS = 700  # before the last token: longer than between two messages that repeat all before them
MAX_UNSENT_BYTES = 1 << 20  # in the client's output buffer: above it token messages are held back


T = TypeVar("T")


class FenceLost(Exception):
    """Another writer has the response, or it was closed. ``ended``: its log has an end."""

    def __init__(self, ended: bool) -> None:
        self.ended = ended
        super().__init__("the response has ended" if ended else "another writer has the response")


@dataclass(frozen=True, slots=True)
class Claim:
    """``fence`` None: there is nothing to do, because the log has ended or is poison, or not now
    (``held_back``). ``history`` is what stood before our own Started."""

    fence: Fence | None
    history: LogReader
    held_back: bool = False


class ReplyLog:
    def __init__(
        self, broker: Broker, gateway: GatewayId, response: ResponseId, session: SessionToken
    ) -> None:
        self._broker = broker
        self._response = response
        self.tokens_subject, self.fences_subject = subjects.reply_log(gateway, response, session)

    async def claim(
        self,
        make_started: Callable[[int], Started],
        *,
        redelivered: bool = False,
        may_start: Callable[[LogReader], bool] = lambda history: True,
    ) -> Claim:
        """Become the writer. ``make_started`` gets the ordinal of the attempt. ``redelivered``: there is
        probably a history, which saves a try without one. ``may_start`` is asked where there is a history
        that another writer could go on from; at its False nothing is written. Tries for as long as the
        broker is away: the caller owns the time."""
        history = LogReader()
        last_fence_seq = 0
        while True:
            if redelivered:
                history, last_fence_seq = await self._patiently(self._read_newest)
                if history.end is not None or history.is_poison():
                    return Claim(None, history)
                if not may_start(history):
                    return Claim(None, history, held_back=True)
            try:
                seq = await self._put_fence(make_started(history.attempts + 1), last_fence_seq)
            except ApiError as error:
                if not error.wrong_last_sequence:
                    raise
                redelivered = True
                continue
            if last_fence_seq:
                await self._read_patiently(history, until=seq)
            return Claim(None if history.end is not None else Fence(seq), history)

    async def send_tokens(self, tokens: Tokens) -> bool:
        """Publish without an ack. False, and nothing sent, while disconnected or behind a full output
        buffer: ``LogWriter.rewind`` brings these tokens again."""
        client = self._broker.nc
        if self._broker.connected and client.pending_data_size <= MAX_UNSENT_BYTES:
            try:
                await client.publish(self.tokens_subject, codec.encode(tokens))
            except nats.errors.MaxPayloadError:
                raise
            except nats.errors.Error as error:
                log.debug("tokens of %s were not sent: %s", self._response, error)
            else:
                return True
        metrics.TOKENS_HELD_BACK.inc()
        return False

    async def send_tokens_confirmed(self, tokens: Tokens, timeout_s: float) -> bool:
        """Publish and wait for the ack, which covers everything published before it on this connection.
        False: unknown or refused; rewind and send again."""
        try:
            await jetstream.publish(
                self._broker, self.tokens_subject, codec.encode(tokens), timeout_s=timeout_s
            )
        except NoAnswer:
            return False
        except ApiError as error:
            log.warning("tokens of %s were refused: %s", self._response, error)
            return False
        return True

    async def end(self, message: Finished | Failed) -> int:
        """Store the terminal if this writer still has the response; tries until that is known. Returns its
        sequence. Raises ``FenceLost``."""
        data = self._fitting(message)
        headers = {
            MSG_ID: f"{self._response}-end-{message.fence}",
            EXPECTED_SEQ: str(message.fence),
            EXPECTED_SEQ_SUBJECT: self.fences_subject,
        }
        try:
            ack = await jetstream.publish_until_stored(self._broker, self.tokens_subject, data, headers)
        except ApiError as error:
            if not error.wrong_last_sequence:
                raise
            history = await self._patiently(self.read)
            raise FenceLost(ended=history.end is not None) from None
        return ack.seq

    def _fitting(self, message: Finished | Failed) -> bytes:
        """As one message of the server's size. Where all log probabilities together are too much, they are
        left out: readers have those of the token messages. Where the ids are, it is a failure."""
        room = self._broker.nc.max_payload - HEADERS_ALLOWANCE
        data = codec.encode(message)
        if len(data) > room and isinstance(message, Finished):
            data = codec.encode(msgspec.structs.replace(message, logprobs=None))
            if len(data) > room:
                why = f"The {message.total} tokens of this response do not fit the NATS server's max_payload."
                failed = Failed(
                    fence=message.fence, code="payload_too_large", message=why, total=message.total
                )
                data = codec.encode(failed)
        return data

    async def close(self, closed: Closed, *, timeout_s: float = CLOSE_LIMIT_S) -> int:
        """End the response from outside its writer; returns the sequence. Where the log has ended before,
        the earlier end counts. Raises ``HeadraceError(broker_unavailable)`` after ``timeout_s``."""
        headers = {MSG_ID: f"{self._response}-closed-{secrets.token_hex(6)}"}
        ack = await jetstream.publish_until_stored(
            self._broker, self.fences_subject, codec.encode(closed), headers, timeout_s=timeout_s
        )
        return ack.seq

    async def share(
        self, message: Joined | Parted | Closed, *, behind: int, timeout_s: float = CLOSE_LIMIT_S
    ) -> int | None:
        """Say whose tokens these are (rule 9), if ``behind`` is the last sequence on ``R.f`` (0: none is).
        None: it is not, and the log says what is. Raises ``HeadraceError(broker_unavailable)`` after
        ``timeout_s``."""
        try:
            return await self._put_fence(message, behind, timeout_s=timeout_s)
        except ApiError as error:
            if not error.wrong_last_sequence:
                raise
            return None

    async def hand_off(self, fence: Fence) -> bool:
        """Say that this writer stops of its own will. False: it was not the writer any more. Conditional,
        because a stray fence message would fence off the next writer."""
        try:
            await self._put_fence(Handoff(fence=fence), fence, timeout_s=CLOSE_LIMIT_S)
        except ApiError as error:
            if not error.wrong_last_sequence:
                raise
            return False
        return True

    async def lease(self) -> tuple[int, FenceMessage] | None:
        """The last message on ``R.f`` and its sequence: ours, or the response is not ours. Raises
        ``HeadraceError``: ``broker_unavailable`` says nothing about the lease."""
        stored = await jetstream.last_message(self._broker, subjects.REPLIES, self.fences_subject)
        if stored is None:
            return None
        try:
            return stored.seq, codec.decode_fence_message(stored.data)
        except msgspec.DecodeError as error:
            raise HeadraceError(
                "internal_error", f"the fence at REPLIES {stored.seq} does not decode"
            ) from error

    async def read(self) -> LogReader:
        """Everything stored now."""
        reader = LogReader()
        await self._read(reader)
        return reader

    async def _put_fence(
        self, message: FenceMessage, expected_seq: int, timeout_s: float | None = None
    ) -> int:
        headers = {
            MSG_ID: f"{self._response}-fence-{secrets.token_hex(6)}",
            EXPECTED_SEQ: str(expected_seq),
        }
        ack = await jetstream.publish_until_stored(
            self._broker, self.fences_subject, codec.encode(message), headers, timeout_s=timeout_s
        )
        return ack.seq

    async def _read_patiently(self, reader: LogReader, until: int) -> None:
        """Like ``_read``, and again until the message ``until`` is seen (a replica may answer that lags
        behind the ack)."""
        while await self._patiently(partial(self._read, reader, until)) < until:  # noqa: ASYNC110 - no event
            await asyncio.sleep(READ_AGAIN_S)

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """Again and again while the broker is away."""
        while True:
            try:
                return await read()
            except NoAnswer:
                await self._broker.wait_connected()
            except ApiError as error:
                if not error.passing:
                    raise
            await asyncio.sleep(READ_AGAIN_S)

    async def _read_newest(self) -> tuple[LogReader, int]:
        """What ``read`` gives, and the sequence of the last message on ``R.f``, at a fraction of its price:
        all fences, and tokens only from a recent message on that repeats all before it. Reading 500 messages
        of one stream among 80 costs 20 to 30 ms, and a dead worker leaves many streams at once."""
        fences, last = await asyncio.gather(
            self._stored_fences(),
            jetstream.last_message(self._broker, subjects.REPLIES, self.tokens_subject),
        )
        last_fence_seq = fences[-1].seq if fences else 0
        reader = LogReader()
        if last is not None:
            since_unix_ms = last.stored_unix_ms - LOOK_BACK_MS
            recent = await read_since(self._broker, subjects.REPLIES, self.tokens_subject, since_unix_ms)
            # Of two answers, that of a replica may lag: what follows the last token is read as one.
            known = [fence for fence in fences if fence.seq < recent[-1].seq] if recent else []
            _feed(reader, known)
            before = len(reader.ids)  # a Parted brings some, and shows no gap behind them
            reader = LogReader()
            _feed(reader, sorted(known + recent, key=lambda item: item.seq))
            if len(reader.ids) == before:  # those before are missing, or nobody had any
                reader = LogReader()
        if reader.last_seq < last_fence_seq or not reader.ids:
            await self._read(reader)
        return reader, last_fence_seq

    async def _stored_fences(self) -> list[StoredMessage]:
        stored = jetstream.messages(self._broker, subjects.REPLIES, self.fences_subject)
        return [item async for item in stored]

    async def _read(self, reader: LogReader, until: int | None = None) -> int:
        """Feed what is stored behind ``reader.last_seq`` and before ``until``. Returns the sequence of the
        last message that this call has seen."""
        last_seq = 0
        names = (self.tokens_subject, self.fences_subject)
        first_seq = reader.last_seq + 1
        for item in await read_stored(self._broker, subjects.REPLIES, names, first_seq=first_seq):
            last_seq = item.seq
            if until is not None and item.seq >= until:
                break
            _feed(reader, [item])
        return last_seq


def _feed(reader: LogReader, stored: Iterable[StoredMessage]) -> None:
    for item in stored:
        message = decode_stored(item)
        if message is not None:
            reader.feed(item.seq, message)


def decode_stored(item: StoredMessage) -> ReplyMessage | None:
    """The message of a stored item; None, counted and logged, where it does not decode."""
    return decode_reply(item.subject, item.data, item.seq)


def decode_reply(subject: str, data: bytes, seq: int) -> ReplyMessage | None:
    """As ``decode_stored``. ``subject`` ends in ``.t`` or ``.f``."""
    try:
        return (
            codec.decode_token_message(data) if subject.endswith(".t") else codec.decode_fence_message(data)
        )
    except msgspec.DecodeError as error:
        metrics.UNDECODABLE.labels(stream=subjects.REPLIES).inc()
        log.error("REPLIES %d on %s does not decode: %s", seq, subject, error)
        return None
