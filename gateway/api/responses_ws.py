"""The Responses API over a WebSocket: many responses at once on one connection, each a task of its session.

Client events: ``response.create`` (the parameters stand in the event itself, as the SDK sends them),
``response.cancel``, ``response.resume``, ``ping``. Requests with the same ``stream_id`` run one after the
other, all others at once; every event of a response carries its ``stream_id`` if it has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.labelled import labelled
from broker.metrics import RESUMES, STREAMS
from gateway.api.errors import coded
from gateway.api.front import Front
from gateway.api.parse_json import JsonObject, to_request
from gateway.api.parse_responses import parse_create, to_generation
from gateway.api.parse_sampling import Label
from gateway.api.responses_events import Event, ResponseEvents
from gateway.api.responses_view import attach, cancel, events_of, first_token
from gateway.api.sockets import Socket, SocketClosed
from gateway.api.token_logprobs import off_loop
from gateway.caller import Caller
from gateway.generation import Generation, Parsed, Text, Update, is_urgent
from gateway.live import Live, now_ms
from schemas.errors import HeadraceError

_encoder = msgspec.json.Encoder()
CLIENT_EVENTS = ("response.create", "response.cancel", "response.resume", "ping")


class Cancel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    response_id: str


class Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    response_id: str
    starting_after: Annotated[int, Meta(ge=-1, le=1 << 53)] = -1
    stream_id: Label | None = None  # of the events; it waits for no other stream


class Pong(msgspec.Struct, frozen=True):
    event_id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["pong"] = "pong"


class Ping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Origin(msgspec.Struct, frozen=True):
    """What an error is about, as far as the client named it."""

    event_id: str | None = None
    stream_id: str | None = None


class ResponsesSession:
    def __init__(self, front: Front, socket: Socket, caller: Caller) -> None:
        self._front = front
        self._caller = caller
        self._socket = socket
        self._running: set[asyncio.Task[None]] = set()  # bounded: beyond it, too_many_responses
        self._cancelling: set[asyncio.Task[None]] = set()  # bounded likewise
        self._lanes: dict[str, asyncio.Task[None]] = {}  # the last of each stream_id

    async def run(self) -> None:
        """Until the client or the gateway hangs up; its responses are then detached from, not cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._socket.attend_shutdown(tasks)
                while True:
                    await self._take(tasks)
        except* SocketClosed:
            pass

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        origin = Origin()
        try:
            raw = await self._socket.receive()
            received = now_ms()
            kind, event_id = raw.pop("type", None), raw.pop("event_id", None)
            origin = Origin(_if_text(event_id), _if_text(raw.get("stream_id")))
            match kind:
                case "response.create":
                    self._create(tasks, raw, origin, received)
                case "response.cancel":
                    self._cancel(tasks, raw, origin)
                case "response.resume":
                    self._resume(tasks, raw, origin)
                case "ping":
                    to_request(raw, Ping)
                    await self._socket.send(_encoder.encode(Pong(origin.event_id or msgspec.UNSET)))
                case _:
                    known = ", ".join(CLIENT_EVENTS)
                    problem = f"Send an event whose type is one of {known}."
                    raise HeadraceError("unknown_event", problem, param="type")
        except SocketClosed:
            raise
        except Exception as error:
            await self._tell(error, origin)

    def _create(
        self, tasks: asyncio.TaskGroup, raw: JsonObject, origin: Origin, received_unix_ms: float
    ) -> None:
        params = parse_create(raw)
        if params.stream is False:
            problem = "A WebSocket carries events only: leave stream out."
            raise HeadraceError("unsupported_parameter", problem, param="stream")
        generation = to_generation(
            params, caller=self._caller, limits=self._front.limits, received_unix_ms=received_unix_ms
        )
        earlier = self._lanes.get(params.stream_id) if params.stream_id is not None else None
        generate = partial(self._generate, generation, origin, earlier)
        task = self._spawn(tasks, self._running, generate, origin)
        if params.stream_id is not None:
            self._lanes[params.stream_id] = task
            task.add_done_callback(lambda done: self._leave_lane(str(params.stream_id), done))

    def _resume(self, tasks: asyncio.TaskGroup, raw: JsonObject, origin: Origin) -> None:
        resume = to_request(raw, Resume)

        async def resuming() -> None:
            live = await attach(self._front, self._caller, resume.response_id)
            RESUMES.inc()
            live.resumed += 1
            await self._follow(live, origin, after=resume.starting_after)

        self._spawn(tasks, self._running, resuming, origin)

    def _cancel(self, tasks: asyncio.TaskGroup, raw: JsonObject, origin: Origin) -> None:
        """Whoever follows the response gets its ``response.incomplete``; here there is no answer. Not
        waited for: with the broker away it takes seconds to fail."""
        response_id = to_request(raw, Cancel).response_id

        async def cancelling() -> None:
            await cancel(self._front, self._caller, response_id)

        self._spawn(tasks, self._cancelling, cancelling, origin)

    def _spawn(
        self,
        tasks: asyncio.TaskGroup,
        among: set[asyncio.Task[None]],
        work: Callable[[], Coroutine[None, None, None]],
        origin: Origin,
    ) -> asyncio.Task[None]:
        """``work`` is called by its task, which may be cancelled before it begins."""
        limit = self._front.limits.max_responses_per_connection
        if len(among) >= limit:
            problem = f"This connection has {limit} requests of this kind running; wait for one to end."
            raise HeadraceError("too_many_responses", problem)
        task = tasks.create_task(self._or_error(work, origin), name="response")
        among.add(task)
        task.add_done_callback(among.discard)
        return task

    def _leave_lane(self, lane: str, task: asyncio.Task[None]) -> None:
        if self._lanes.get(lane) is task:
            del self._lanes[lane]

    async def _or_error(self, work: Callable[[], Coroutine[None, None, None]], origin: Origin) -> None:
        try:
            await work()
        except SocketClosed:
            raise
        except Exception as error:
            await self._tell(error, origin)

    async def _tell(self, error: Exception, origin: Origin) -> None:
        """What goes wrong with one request is told to its client, and the connection lives on."""
        await self._socket.error(coded(error), event_id=origin.event_id, stream_id=origin.stream_id)

    async def _generate(
        self, generation: Generation, origin: Origin, earlier: asyncio.Task[None] | None
    ) -> None:
        if earlier is not None:
            await asyncio.wait({earlier})
        with self._front.answering():
            live = await self._front.pipeline.submit(self._socket.as_asked(generation))
            await self._follow(live, origin, after=-1)

    async def _follow(self, live: Live, origin: Origin, *, after: int) -> None:
        """Send the events behind ``after``. While one waits for the client, news merge in the reader. A
        drain waits for whoever follows, of an old connection or of one that resumed."""
        reader = live.reader(first_token(live, after))
        streams = labelled(STREAMS, live.job.presentation.api, "websocket")
        try:
            with self._front.answering(new=False), streams.track_inprogress():
                events = events_of(self._front, live, after=after, stream_id=origin.stream_id)
                await self._socket.send_all(map(_encoder.encode, events.opening()), urgent=False)
                reader.divert(self._front.tick, partial(self._show, events))
                while updates := await reader.next():
                    told = await off_loop(live, updates, partial(_fed, events, updates))
                    await self._socket.send_all(map(_encoder.encode, told), urgent=is_urgent(updates))
        finally:
            reader.close()

    def _show(self, events: ResponseEvents, text: Text | Parsed) -> bool:
        outlet = self._socket.outlet
        if outlet is None or not outlet.is_open:
            return False
        if told := events.feed(text):
            outlet.put(*map(_encoder.encode, told))
        return True


def _fed(events: ResponseEvents, updates: list[Update]) -> list[Event]:
    return [event for update in updates for event in events.feed(update)]


def _if_text(value: object) -> str | None:
    return value if isinstance(value, str) else None
