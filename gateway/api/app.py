"""The routes: which path leads to which surface. Everything else about a request is in its surface's file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from gateway.api import chat_completions, errors, ops, responses_http, simple_chat
from gateway.api.front import Front, caller_of
from gateway.api.guard import Guard, Seats, is_loopback
from gateway.api.http_request import ClientGone
from gateway.api.page_files import PageFiles
from gateway.api.parse_chat import ChatCompletion, Question
from gateway.api.parse_responses import ResponseCreate
from gateway.api.responses_ws import ResponsesSession
from gateway.api.simple_chat import SimpleChatSession
from gateway.api.sockets import Socket, accept
from gateway.caller import Caller
from schemas.errors import HeadraceError

TITLE = "Headrace gateway"
_REF = "#/components/schemas/{name}"


class Session(Protocol):
    async def run(self) -> None: ...


def build(front: Front) -> ASGIApp:
    """The gateway's ASGI application."""
    app = FastAPI(
        title=TITLE,
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
    _chats(app, front)
    _ops(app, front)
    _page(app)
    _nothing_else(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return _guarded(app, front)


def _guarded(app: ASGIApp, front: Front) -> ASGIApp:
    """Who may, then how many; between them the headers that let a browser show an allowed page the answer,
    a refusal for want of a seat too."""
    limits = front.limits
    inner: ASGIApp = Seats(app, front)
    if limits.allowed_origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=limits.allowed_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("retry-after", "x-headrace-cache", "x-request-id"),
        )
    loopback_only = is_loopback(limits.host) and not limits.allow_unauthenticated
    return Guard(inner, limits.allowed_origins, loopback_only=loopback_only)


def _responses(app: FastAPI, front: Front) -> None:
    @app.post("/v1/responses", openapi_extra=_takes("ResponseCreate"))
    async def create_response(request: Request) -> Response:
        return await responses_http.create(front, request)

    @app.get("/v1/responses/{response_id}")
    async def retrieve_response(request: Request, response_id: str) -> Response:
        return await responses_http.retrieve(front, request, response_id)

    @app.post("/v1/responses/{response_id}/cancel")
    async def cancel_response(request: Request, response_id: str) -> Response:
        return await responses_http.cancel(front, request, response_id)

    @app.websocket("/v1/responses")
    async def responses_socket(websocket: WebSocket) -> None:
        await _attend(front, websocket, ResponsesSession)


def _chats(app: FastAPI, front: Front) -> None:
    @app.post("/v1/chat/completions", openapi_extra=_takes("ChatCompletion"))
    async def create_chat_completion(request: Request) -> Response:
        return await chat_completions.create(front, request)

    @app.post("/chat", openapi_extra=_takes("Question"))
    async def chat(request: Request) -> Response:
        return await simple_chat.post(front, request)

    @app.websocket("/ws/chat")
    async def chat_socket(websocket: WebSocket) -> None:
        await _attend(front, websocket, SimpleChatSession)


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
        return ops.metrics(request)


def _page(app: FastAPI) -> None:
    files = PageFiles()

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return files.index(request)

    @app.get("/assets/{path:path}", include_in_schema=False)
    async def asset(request: Request, path: str) -> Response:
        return files.asset(request, path)


def _nothing_else(app: FastAPI) -> None:
    @app.websocket("/{path:path}")
    async def no_such_socket(websocket: WebSocket) -> None:
        problem = HeadraceError("not_found", "WebSockets are at /v1/responses and /ws/chat.")
        await websocket.send_denial_response(errors.http_answer(problem))


async def _attend(
    front: Front, websocket: WebSocket, session_of: Callable[[Front, Socket, Caller], Session]
) -> None:
    """A WebSocket from its handshake to its end."""
    await accept(websocket)
    socket = Socket(websocket, front.limits.max_message_bytes)
    with front.attending(socket):
        await session_of(front, socket, caller_of(websocket)).run()


def _takes(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(name=schema)}}}
    return {"requestBody": {"required": True, "content": content}}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document of the routes, with the schemas of the structs that parse the bodies."""
    if app.openapi_schema is None:
        document = get_openapi(title=TITLE, version=app.version, routes=app.routes)
        _, schemas = msgspec.json.schema_components(
            [ResponseCreate, ChatCompletion, Question], ref_template=_REF
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
        app.openapi_schema = document
    return app.openapi_schema
