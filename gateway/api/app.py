"""The routes: which path leads to which surface. Everything else about a request is in its surface's file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
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


class Session(Protocol):
    async def run(self) -> None: ...


def build(front: Front, door: Door | None = None) -> ASGIApp:
    """The gateway's ASGI application. ``door`` None: nobody is asked who they are."""
    app = FastAPI(
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        exception_handlers={
            HeadraceError: errors.answer_coded,
            HTTPException: errors.answer_framework,
            RequestValidationError: errors.answer_validation,
            ClientGone: errors.answer_nobody,
            ClientDisconnect: errors.answer_nobody,
            Exception: errors.answer_bug,
        },
    )
    _responses(app, front)
    _conversations(app, front)
    _chats(app, front)
    _tokens(app, front, door)
    _ops(app, front)
    _page(app)
    app.openapi = openapi.document  # type: ignore[method-assign]
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
            expose_headers=("retry-after", "x-headrace-cache", "x-request-id", *LIMIT_HEADERS),
        )
    loopback_only = door is None and is_loopback(limits.host) and not limits.allow_unauthenticated
    return Guard(inner, limits.allowed_origins, loopback_only=loopback_only)


def _responses(app: FastAPI, front: Front) -> None:
    @app.post("/v1/responses")
    async def create_response(request: Request) -> Response:
        return await responses_http.create(front, request)

    @app.get("/v1/responses/{response_id}")
    async def retrieve_response(request: Request, response_id: str) -> Response:
        return await responses_http.retrieve(front, request, response_id)

    @app.post("/v1/responses/{response_id}/cancel")
    async def cancel_response(request: Request, response_id: str) -> Response:
        return await responses_http.cancel(front, request, response_id)

    @app.delete("/v1/responses/{response_id}")
    async def delete_response(request: Request, response_id: str) -> Response:
        return await responses_http.delete(front, request, response_id)

    @app.get("/v1/responses/{response_id}/input_items")
    async def list_input_items(request: Request, response_id: str) -> Response:
        return await responses_http.input_items(front, request, response_id)


def _conversations(app: FastAPI, front: Front) -> None:
    @app.get("/v1/conversations/{name:path}/items")
    async def list_items(request: Request, name: str) -> Response:
        return await conversations.items(front, request, name)

    @app.get("/v1/conversations/{name:path}")
    async def retrieve_conversation(request: Request, name: str) -> Response:
        return await conversations.retrieve(front, request, name)

    @app.delete("/v1/conversations/{name:path}")
    async def delete_conversation(request: Request, name: str) -> Response:
        return await conversations.delete(front, request, name)


def _chats(app: FastAPI, front: Front) -> None:
    @app.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Response:
        return await chat_completions.create(front, request)

    @app.post("/v1/completions")
    async def create_completion(request: Request) -> Response:
        return await completions.create(front, request)

    @app.post("/chat")
    async def chat(request: Request) -> Response:
        return await simple_chat.post(front, request)


def _tokens(app: FastAPI, front: Front, door: Door | None) -> None:
    @app.post("/v1/tokens")
    async def create_token(request: Request) -> Response:
        return await tokens.create(front, door, request)


def _ops(app: FastAPI, front: Front) -> None:
    @app.get("/v1/models")
    async def list_models() -> Response:
        return ops.models(front)

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        return ops.model(front, name)

    @app.get("/healthz")
    async def healthz() -> Response:
        return ops.healthz()

    @app.get("/readyz")
    async def readyz() -> Response:
        return ops.readyz(front)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return await ops.metrics(front, request)


def _page(app: FastAPI) -> None:
    files = PageFiles()

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return files.index(request)

    @app.get("/assets/{path:path}", include_in_schema=False)
    async def asset(request: Request, path: str) -> Response:
        return files.asset(request, path)


class Sockets:
    """WebSockets go round FastAPI: what its layers hold for a connection, they hold while it is idle."""

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
