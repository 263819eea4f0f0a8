"""The one NATS connection of a process: connecting, coming back, requests, closing. Owns the settings
that make nats-py safe to build on; must not know any stream or subject of Headrace.

Hazards of nats-py 2.16 that are dealt with here, each read in its source:
``request()`` sits out its whole timeout when the connection breaks, so requests have an inbox of their own
and fail at the moment of the break; a ``flush()`` or ``rtt()`` that is cancelled or times out kills the
read loop when its PONG comes (``set_result`` on a cancelled future), so neither is used; ``drain()``
swallows its own cancellation and may then hang, so closing writes out what is pending and closes; a
message whose subject or status line is not UTF-8 ends the read loop, so ``NatsClient`` reads them for it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import nats
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from broker import metrics
from broker.credentials import Credentials, CredentialsError
from broker.nats_client import Headers, NatsClient, command, header_lines
from broker.settings import masked_urls
from schemas.config import Nats
from schemas.errors import HeadraceError

log = logging.getLogger(__name__)

PING_INTERVAL_S = 5  # a dead peer is noticed after two unanswered pings
RECONNECT_WAIT_S = 0.1
FLUSH_TIMEOUT_S = 0.5  # how long one publish may wait for a full output buffer
CLOSE_LIMIT_S = 2.0

Why = Literal["disconnected", "timeout", "no_responders"]


class BrokerUnavailable(Exception):
    """No connection could be made in the time given. The message is for the operator."""


class BrokerClosed(Exception):
    """The connection is gone for good (credentials expired, closed by the server): the process ends."""


class NoAnswer(HeadraceError):
    """A request without an answer. Unless ``why`` is ``no_responders``, it may have been acted upon."""

    def __init__(self, why: Why, subject: str) -> None:
        self.why = why
        super().__init__("broker_unavailable", "The message broker cannot be reached right now; try again.")
        self.args = (f"broker_unavailable: {why} on {subject}",)


@dataclass(slots=True)
class _Waiter:
    """An open request: its answers so far, and the test that says which answer is the last."""

    is_last: Callable[[Msg], bool] | None
    done: asyncio.Future[list[Msg]]
    answers: list[Msg] = field(default_factory=list)

    def fail(self, why: Why, subject: str) -> None:
        if not self.done.done():
            self.done.set_exception(NoAnswer(why, subject))


class Broker:
    """``epoch`` grows at every reconnect: whatever was outstanding on the wire before it is lost."""

    def __init__(self, config: Nats, name: str) -> None:
        self.config = config
        self.name = name
        self.nc = NatsClient()
        self.js: JetStreamContext = self.nc.jetstream()
        self.epoch = 0
        self._on_reconnect: list[Callable[[], None]] = []
        self._up = asyncio.Event()  # connected, or gone for good
        self._closing = False
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_error = "no answer"
        self._inbox = ""
        self._request_ids = itertools.count(1)
        self._waiting: dict[str, _Waiter] = {}
        self._expecting: dict[str, Callable[[Msg], None]] = {}

    @classmethod
    async def connect(cls, config: Nats, *, name: str, wait_s: float = 30) -> Broker:
        """``name`` is shown by ``nats server report connections``. Tries for ``wait_s``, then raises
        ``BrokerUnavailable``; refused or unreadable credentials and a bad address raise it at once."""
        broker = cls(config, name)
        try:
            async with asyncio.timeout(wait_s):
                await broker._connect()
        except TimeoutError:
            await broker.close()
            raise BrokerUnavailable(
                f"no NATS server at {masked_urls(config.url)} after {wait_s:g} s ({broker._last_error}); "
                "start one or set nats.url"
            ) from None
        except BaseException:
            await broker.close()
            raise
        return broker

    async def _connect(self) -> None:
        try:
            credentials = Credentials(self.config.credentials) if self.config.credentials else None
        except CredentialsError as error:
            raise BrokerUnavailable(str(error)) from None
        try:
            await self._connect_client(credentials)
        except nats.errors.Error as error:  # not for a server that is absent: that one is tried again
            raise BrokerUnavailable(
                f"{error}: nats.url must be like nats://host:4222, and in a password / is written as %2F"
            ) from None
        self._inbox = self.nc.new_inbox()
        await self.nc.subscribe(f"{self._inbox}.*", cb=self._answer)
        metrics.BROKER_CONNECTED.set(1)
        self._up.set()

    async def _connect_client(self, credentials: Credentials | None) -> None:
        await self.nc.connect(
            servers=[url.strip() for url in self.config.url.split(",")],
            name=self.name,
            user=self.config.user or None,
            password=self.config.password or None,
            user_jwt_cb=credentials.jwt if credentials else None,
            signature_cb=credentials.sign if credentials else None,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # annotated int, used as seconds
            flush_timeout=FLUSH_TIMEOUT_S,
            error_cb=self._error,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            closed_cb=self._closed,
        )

    @property
    def connected(self) -> bool:
        """Up, with all subscriptions in place and everyone told of the reconnect."""
        return bool(self.nc.is_connected) and self._up.is_set()

    async def wait_connected(self) -> None:
        """Returns when the connection is up; raises ``BrokerClosed`` when it never will be again."""
        while not self.connected:
            if self._gone.done():
                raise BrokerClosed(self._last_error)
            if self._up.is_set():  # broken a moment ago, and nats-py has not said so yet
                await asyncio.sleep(RECONNECT_WAIT_S)
            else:
                await self._up.wait()

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """``callback`` is called after every reconnect, subscriptions being in place; it must not block."""
        self._on_reconnect.append(callback)

    def off_reconnect(self, callback: Callable[[], None]) -> None:
        self._on_reconnect.remove(callback)

    async def request(
        self, subject: str, payload: bytes = b"", *, timeout_s: float = 2.0, headers: Headers | None = None
    ) -> Msg:
        """One answer. Raises ``NoAnswer`` (``broker_unavailable``): at once when disconnected, when the
        connection breaks, when nobody listens, after ``timeout_s``. Raises ``payload_too_large``, nothing
        being sent, for what the server would close the connection for."""
        answers = await self._ask(subject, payload, None, timeout_s, headers)
        if not answers[0].data and answers[0].headers and answers[0].headers.get("Status") == "503":
            raise NoAnswer("no_responders", subject)
        return answers[0]

    async def request_many(
        self, subject: str, payload: bytes, *, is_last: Callable[[Msg], bool], timeout_s: float = 5.0
    ) -> list[Msg]:
        """All answers up to and with the one that ``is_last``. Raises like ``request``."""
        answers = await self._ask(subject, payload, is_last, timeout_s, None)
        last = answers[-1]
        if not last.data and last.headers and last.headers.get("Status") == "503":
            raise NoAnswer("no_responders", subject)
        return answers

    async def _ask(
        self,
        subject: str,
        payload: bytes,
        is_last: Callable[[Msg], bool] | None,
        timeout_s: float,
        headers: Headers | None,
    ) -> list[Msg]:
        if not self.connected:
            raise NoAnswer("disconnected", subject)
        lines = header_lines(headers)
        size = len(payload) + len(lines)
        if size > self.nc.max_payload:
            raise HeadraceError(
                "payload_too_large",
                f"A message of {size} bytes is more than the NATS server takes ({self.nc.max_payload}): "
                "raise its max_payload.",
            )
        inbox = f"{self._inbox}.{next(self._request_ids)}"
        loop = asyncio.get_running_loop()
        waiter = _Waiter(is_last, loop.create_future())
        self._waiting[inbox] = waiter
        timer = loop.call_later(timeout_s, waiter.fail, "timeout", subject)  # a tenth of an asyncio.timeout
        try:
            await self.nc.publish_commands(command(subject, inbox, lines, payload), 1)
            return await waiter.done
        except nats.errors.Error:
            raise NoAnswer("disconnected", subject) from None
        finally:
            timer.cancel()
            waiter.done.cancel()
            del self._waiting[inbox]

    def expect(self, on_answer: Callable[[Msg], None]) -> str:
        """An inbox for one answer to what the caller publishes next; a request without its task and its
        future. ``on_answer`` is called in the event loop, at most once: never after ``forget``, nor once the
        connection has been broken."""
        inbox = f"{self._inbox}.{next(self._request_ids)}"
        self._expecting[inbox] = on_answer
        return inbox

    def forget(self, inbox: str) -> None:
        self._expecting.pop(inbox, None)

    async def _answer(self, msg: Msg) -> None:
        waiter = self._waiting.get(msg.subject)
        if waiter is None:
            on_answer = self._expecting.pop(msg.subject, None)
            if on_answer is not None:  # else it is too late: the asker has given up
                on_answer(msg)
            return
        if waiter.done.done():
            return
        waiter.answers.append(msg)
        if waiter.is_last is None or waiter.is_last(msg):
            waiter.done.set_result(waiter.answers)

    async def closed(self) -> None:
        """Returns after ``close()`` only; raises ``BrokerClosed`` when the connection is gone for good."""
        await asyncio.shield(self._gone)
        if not self._closing:
            raise BrokerClosed(f"the connection to NATS was closed for good: {self._last_error}")

    async def close(self) -> None:
        """Write out what is pending and close; never hangs, a stuck peer is left after 2 s."""
        self._closing = True
        closing = asyncio.ensure_future(self.nc.close())
        _, stuck = await asyncio.wait({closing}, timeout=CLOSE_LIMIT_S)
        if stuck:
            closing.cancel()
            await asyncio.wait({closing}, timeout=CLOSE_LIMIT_S)
        self._finish()

    def _finish(self) -> None:
        metrics.BROKER_CONNECTED.set(0)
        self._fail_waiting()
        if not self._gone.done():
            self._gone.set_result(None)
        self._up.set()

    def _fail_waiting(self) -> None:
        self._expecting.clear()
        for inbox, waiter in self._waiting.items():
            waiter.fail("disconnected", inbox)

    async def _error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if isinstance(error, nats.errors.SlowConsumerError):
            metrics.BROKER_DROPPED.inc()
            log.error("dropped a message on %s: it is not read fast enough", error.subject)
        elif text != self._last_error:
            log.info("nats: %s", text)  # once, not at every attempt
        self._last_error = text
        if "authorization violation" in text.lower() and not self._inbox:
            raise BrokerUnavailable(
                f"{masked_urls(self.config.url)} refuses these credentials; see nats.credentials, nats.user"
            )

    async def _disconnected(self) -> None:
        metrics.BROKER_CONNECTED.set(0)
        self._up.clear()
        self._fail_waiting()
        if not self._closing:
            log.warning("disconnected from NATS, reconnecting")

    async def _reconnected(self) -> None:
        self.epoch += 1
        self._last_error = ""
        metrics.BROKER_CONNECTED.set(1)
        metrics.BROKER_RECONNECTS.inc()
        url = self.nc.connected_url  # its netloc would hold the password
        log.info("reconnected to NATS at %s", f"{url.hostname}:{url.port}" if url else "?")
        self._up.set()
        for callback in self._on_reconnect:
            try:
                callback()
            except Exception as error:  # nats-py would only log it; a bug here must end the process
                self._last_error = f"{callback!r} failed: {error!r}"
                self._finish()
                raise

    async def _closed(self) -> None:
        self._finish()


def unix_ms() -> int:
    return time.time_ns() // 1_000_000
