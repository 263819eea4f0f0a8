"""The client that applications use: streams of responses that outlive connections and gateways."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from gateway.client.backoff import Backoff
from gateway.client.connection import Heartbeat
from gateway.client.errors import JsonObject, ResponseError, of_failed
from gateway.client.follower import Follower
from gateway.client.latency import latency_parts
from gateway.client.link import Link, Site
from gateway.client.stream import StreamState

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


@dataclass(frozen=True)
class Answer:
    """``response``: the response object of the terminal event; its ``status`` is ``completed``,
    ``incomplete`` (``incomplete_details`` says why) or ``cancelled``. ``measured_ms``: from the request to
    that event, on this client's clock."""

    text: str
    response: JsonObject
    response_id: str
    measured_ms: float

    @property
    def latency_parts(self) -> dict[str, float]:
        """Where ``measured_ms`` went: milliseconds by part, ``network`` among them."""
        return latency_parts(self.response, self.measured_ms)


class Client:
    """Any number of streams over as few WebSockets as the gateways allow.

    ``urls``: gateways that serve the same broker, tried in turn (``http``, ``https``, ``ws`` or ``wss``).
    ``api_key``: goes with every handshake; an API key, a JWT or a token.
    ``on_notice(kind, detail)`` is told of ``connected {url}``, ``unreachable {reason}``,
    ``disconnected {url, code, reason}`` and ``resumed {url, response_id, starting_after}``, the first news
    of a response whose connection was lost; it must not block. ``patience_s``: how long a stream waits
    without hearing anything of its response, for a connection or after refusals that pass, before it raises
    the trouble. ``streams_per_connection``: beyond it another WebSocket is opened; at most what the
    gateways' ``max_responses_per_connection`` says. A protocol ping goes out every ``ping_interval_s``; no
    pong for ``ping_timeout_s`` counts as a loss, and so does a gateway that does not answer a handshake
    within ``connect_timeout_s``.

    To leave a stream's loop early detaches from the response and does not cancel it: it runs on to its end,
    or until a gateway cancels it because nobody was connected for its grace time. ``cancel`` ends it.
    (Python runs a generator's clean-up late; ``contextlib.aclosing`` makes it prompt.) A reader that is
    slower than its response gets deltas merged, never a loss, and holds up no other.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        api_key: str | None = None,
        on_notice: Callable[[str, JsonObject], None] | None = None,
        patience_s: float = 60.0,
        streams_per_connection: int = 32,
        ping_interval_s: float = 10.0,
        ping_timeout_s: float = 30.0,
        connect_timeout_s: float = 5.0,
    ) -> None:
        if not urls:
            raise ValueError("name at least one gateway")
        self._patience_s = patience_s
        self._seats = streams_per_connection
        heartbeat = Heartbeat(ping_interval_s, ping_timeout_s, connect_timeout_s)
        self._site = Site([_socket_url(url) for url in urls], api_key, heartbeat, on_notice or _ignore)
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._following: dict[Follower, Link] = {}

    async def __aenter__(self) -> Self:
        """Connects when the first stream wants it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Streams that are still open raise ``client_closed``; their responses are detached from."""
        self._closed = True
        for follower in self._following:
            follower.fail(_closed())
        for link in list(self._links):
            self._close(link)
        if self._closing:
            await asyncio.wait(self._closing)

    async def stream(
        self, *, input: str | list[JsonObject], idempotency_key: str | None = None, **params: Any
    ) -> AsyncGenerator[JsonObject, None]:
        """The server's events of a new response, each once and in order, ending with the terminal one (which
        may be ``response.failed``). ``params``: those of ``response.create`` (``model``, ``conversation``,
        ``max_output_tokens``, …). ``idempotency_key``: one of the caller's own makes the same request, from
        any process, attach to the same response. Raises ``ResponseError``."""
        create = _create(input, idempotency_key, params)
        async with aclosing(self._events(self._state(create=create))) as events:
            async for event in events:
                yield event

    async def respond(
        self, *, input: str | list[JsonObject], idempotency_key: str | None = None, **params: Any
    ) -> Answer:
        """The whole answer; of a response that was cut short, what there is. Raises ``ResponseError``, also
        for a response that failed."""
        text: list[str] = []
        event: JsonObject = {}
        begun_s = time.perf_counter()
        async with aclosing(self.stream(input=input, idempotency_key=idempotency_key, **params)) as events:
            async for event in events:
                if event["type"] == "response.output_text.delta":
                    text.append(event["delta"])
        response = event["response"]
        if event["type"] == "response.failed":
            raise of_failed(response)
        measured_ms = (time.perf_counter() - begun_s) * 1000
        return Answer("".join(text), response, response["id"], measured_ms)

    async def resume(self, response_id: str, starting_after: int = -1) -> AsyncGenerator[JsonObject, None]:
        """The events of a response behind number ``starting_after``, as ``stream`` gives them."""
        state = self._state(response_id=response_id, after=starting_after)
        async with aclosing(self._events(state)) as events:
            async for event in events:
                yield event

    async def cancel(self, response_id: str) -> JsonObject:
        """Ends the response, of this client or any other, and returns its object once it has ended
        (``completed``, if it was faster). Raises ``ResponseError``."""
        for follower, link in self._following.items():
            if follower.state.response_id == response_id:
                await link.cancel(follower)
                if (terminal := await follower.end()) is not None:
                    return _response(terminal)
                break  # its reader left: follow it from here
        state = self._state(response_id=response_id)
        state.cancel()
        last: JsonObject = {}
        async with aclosing(self._events(state)) as events:
            async for event in events:
                last = event
        return _response(last)

    # -- streams and their places ---------------------------------------------------------------------

    def _state(
        self, *, create: JsonObject | None = None, response_id: str | None = None, after: int = -1
    ) -> StreamState:
        return StreamState(
            create=create,
            response_id=response_id,
            after=after,
            backoff=Backoff(random.random),
            patience_s=self._patience_s,
            now=time.monotonic(),
        )

    async def _events(self, state: StreamState) -> AsyncGenerator[JsonObject, None]:
        if self._closed:
            raise _closed()
        follower = Follower(state)
        link = self._link()
        self._following[follower] = link
        link.add(follower)
        try:
            async with aclosing(follower.events()) as events:
                async for event in events:
                    yield event
        finally:
            del self._following[follower]
            link.remove(follower)
            self._fold()

    def _link(self) -> Link:
        """The first with room, or a new one, which starts at the URL after the last one's."""
        for link, task in self._links.items():
            if link.load < self._seats and not task.done():
                return link
        link = Link(self._site, len(self._links) % len(self._site.urls))
        self._links[link] = asyncio.create_task(link.run(), name="gateway-link")
        return link

    def _fold(self) -> None:
        """Links that came for a crowd go when they are empty; the first stays, connected."""
        for place, (link, task) in enumerate(list(self._links.items())):
            if task.done() or (place > 0 and link.load == 0):
                self._close(link)

    def _close(self, link: Link) -> None:
        task = self._links.pop(link)
        task.cancel()
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _create(input: str | list[JsonObject], key: str | None, params: dict[str, Any]) -> JsonObject:
    if "stream_id" in params:
        raise ValueError("stream_id is the client's own: each response has a stream of its own")
    create = {
        **params,
        "type": "response.create",
        "input": input,
        "idempotency_key": key or uuid.uuid4().hex,
    }
    json.dumps(create)  # what is no JSON is raised here, not where all streams are served
    return create


def _closed() -> ResponseError:
    return ResponseError("client_closed", "this client was closed", status=499)


def _response(terminal: JsonObject) -> JsonObject:
    response: JsonObject = terminal["response"]
    return response


def _socket_url(url: str) -> str:
    """``http://host:8080`` to ``ws://host:8080/v1/responses``; addresses that go further are taken, too."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(f"not the address of a gateway: {url!r}")
    base = parts.path.rstrip("/").removesuffix("/responses").removesuffix("/v1")
    return parts._replace(scheme=_SCHEMES[parts.scheme], path=f"{base}/v1/responses").geturl()


def _ignore(kind: str, detail: JsonObject) -> None:
    pass
