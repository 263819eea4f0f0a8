"""The routes: which path leads to which surface. Everything else about a request is in its surface's file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from gateway.admission import LIMIT_HEADERS
from gateway.api import (
    chat_completions,
    completions,
    conversations,
    errors,
    openapi,
    ops,
    responses_http,
    simple_chat,
    tokens,
)
from gateway.api.authenticate import Authenticate
from gateway.api.front import Front, caller_of
from gateway.api.guard import Guard, Seats, is_loopback
from gateway.api.http_request import ClientGone
from gateway.api.page_files import PageFiles
from gateway.api.responses_ws import ResponsesSession
from gateway.api.simple_chat import SimpleChatSession
from gateway.api.sockets import Socket, accept
from gateway.auth.door import Door
from gateway.caller import Caller
from schemas.errors import HeadraceError

OWN_HEADERS = ("x-headrace-cache", "x-headrace-model", "x-headrace-route")
Endpoint = Callable[[Request], Awaitable[Response]]


class Session(Protocol):
    async def run(self) -> None: ...


def build(front: Front, door: Door | None = None) -> ASGIApp:
    """The gateway's ASGI application. ``door`` None: nobody is asked who they are."""
    app = Starlette(
        routes=[*_api(front, door), *_ops(front), *_page()],
        exception_handlers={
            HeadraceError: errors.answer_coded,
            HTTPException: errors.answer_framework,
            ClientGone: errors.answer_nobody,
            ClientDisconnect: errors.answer_nobody,
            Exception: errors.answer_bug,
        },
    )
    return _guarded(Sockets(app, front), front, door)


def _guarded(app: ASGIApp, front: Front, door: Door | None) -> ASGIApp:
    """Which pages may, who, then how many; between them the headers that let a browser show an allowed page
    the answer, a refusal too."""
    limits = front.limits
    inner: ASGIApp = Seats(app, front)
    if door is not None:
        inner = Authenticate(inner, door)
    if limits.allowed_origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=limits.allowed_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("retry-after", "x-request-id", *OWN_HEADERS, *LIMIT_HEADERS),
        )
    loopback_only = door is None and is_loopback(limits.host) and not limits.allow_unauthenticated
    return Guard(inner, limits.allowed_origins, loopback_only=loopback_only)


class Served(Route):
    """One method of a path: without the HEAD that comes along with a GET, which would follow a stream."""

    def __init__(self, method: str, path: str, endpoint: Endpoint, *, described: bool = True) -> None:
        super().__init__(path, endpoint, methods=[method], include_in_schema=described)
        self.methods = {method}


def _api(front: Front, door: Door | None) -> list[Served]:
    def to(operation: Callable[..., Awaitable[Response]], *parameters: str) -> Endpoint:
        async def answer(request: Request) -> Response:
            return await operation(front, request, *(request.path_params[name] for name in parameters))

        return answer

    async def create_token(request: Request) -> Response:
        return await tokens.create(front, door, request)

    response, conversation = "/v1/responses/{response_id}", "/v1/conversations/{name:path}"
    return [
        Served("POST", "/v1/chat/completions", to(chat_completions.create)),
        Served("POST", "/v1/responses", to(responses_http.create)),
        Served("POST", "/v1/completions", to(completions.create)),
        Served("POST", "/chat", to(simple_chat.post)),
        Served("GET", response, to(responses_http.retrieve, "response_id")),
        Served("POST", f"{response}/cancel", to(responses_http.cancel, "response_id")),
        Served("DELETE", response, to(responses_http.delete, "response_id")),
        Served("GET", f"{response}/input_items", to(responses_http.input_items, "response_id")),
        Served("GET", f"{conversation}/items", to(conversations.items, "name")),
        Served("GET", conversation, to(conversations.retrieve, "name")),
        Served("DELETE", conversation, to(conversations.delete, "name")),
        Served("GET", "/v1/models", to(ops.models)),
        Served("GET", "/v1/models/{name:path}", to(ops.model, "name")),
        Served("POST", "/v1/tokens", create_token),
    ]


def _ops(front: Front) -> list[Served]:
    async def healthz(request: Request) -> Response:
        return ops.healthz()

    async def readyz(request: Request) -> Response:
        return ops.readyz(front)

    async def metrics(request: Request) -> Response:
        return await ops.metrics(front, request)

    async def document(request: Request) -> Response:
        return Response(openapi.encoded(), media_type="application/json")

    return [
        Served("GET", "/healthz", healthz),
        Served("GET", "/readyz", readyz),
        Served("GET", "/metrics", metrics),
        Served("GET", "/openapi.json", document, described=False),
    ]


def _page() -> list[Served]:
    files = PageFiles()

    async def page(request: Request) -> Response:
        return files.index(request)

    async def asset(request: Request) -> Response:
        return files.asset(request, request.path_params["path"])

    return [
        Served("GET", "/", page, described=False),
        Served("GET", "/assets/{path:path}", asset, described=False),
    ]


class Sockets:
    """WebSockets go round Starlette: what its layers hold for a connection, they hold while it is idle."""

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        websocket = WebSocket(scope, receive, send)
        session_of = _SESSIONS.get(scope["path"])
        if session_of is None:
            problem = HeadraceError("not_found", "WebSockets are at /v1/responses and /ws/chat.")
            await websocket.send_denial_response(errors.http_answer(problem))
            return
        await accept(websocket)
        socket = Socket(websocket, self._front.limits.max_message_bytes)
        with self._front.attending(socket):
            await session_of(self._front, socket, caller_of(websocket)).run()


_SESSIONS: dict[str, Callable[[Front, Socket, Caller], Session]] = {
    "/v1/responses": ResponsesSession,
    "/ws/chat": SimpleChatSession,
}
