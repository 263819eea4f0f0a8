"""The simple chat: a question with a user's id in, one answer out; the user's conversation is remembered.

``POST /chat`` and WebSocket ``/ws/chat`` take ``{user_id, query}``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.chat_events import failure, finish_reason
from gateway.api.errors import internal
from gateway.api.front import OPEN_TENANT, Front
from gateway.api.http_request import json_answer, now_ms, read_object, until_ended
from gateway.api.parse_chat import Question, parse_question, question_generation
from gateway.api.parse_json import JsonObject
from gateway.api.sockets import Socket, SocketClosed
from gateway.generation import Ended
from gateway.live import Live
from schemas.errors import HeadraceError

log = logging.getLogger(__name__)


class Answer(msgspec.Struct, frozen=True):
    """``latency_ms``: question received to answer complete."""

    user_id: str
    query: str
    response: str
    latency_ms: float


async def post(front: Front, request: Request) -> Response:
    """Raises ``HeadraceError``, ``ClientGone``."""
    raw = await read_object(request, front.limits.max_message_bytes)

    async def end_of(live: Live) -> Ended:
        return await until_ended(live, request)

    live, answer = await _answer(front, parse_question(raw), end_of)
    return json_answer(answer, live)


async def _answer(
    front: Front, question: Question, end_of: Callable[[Live], Awaitable[Ended]]
) -> tuple[Live, Answer]:
    began_s = time.perf_counter()
    generation = question_generation(
        question, tenant=OPEN_TENANT, limits=front.limits, received_unix_ms=now_ms()
    )
    with front.answering():
        live = await front.pipeline.submit(generation)
        end = await end_of(live)
    if finish_reason(end) is None:
        raise failure(end)
    latency_ms = round((time.perf_counter() - began_s) * 1000, 3)
    return live, Answer(question.user_id, question.query, live.text, latency_ms)


class SimpleChatSession:
    """Questions of one WebSocket are answered in their order: a user's next one may need the last answer.
    As many may wait as ``gateway.max_responses_per_connection``; beyond, too_many_responses."""

    def __init__(self, front: Front, socket: Socket) -> None:
        self._front = front
        self._socket = socket
        self._questions: asyncio.Queue[Question] = asyncio.Queue(front.limits.max_responses_per_connection)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._socket.attend_shutdown(), name="attend-shutdown")
                tasks.create_task(self._answer_all(), name="answer-questions")
                while True:
                    await self._take()
        except* SocketClosed:
            pass

    async def _take(self) -> None:
        try:
            raw: JsonObject = await self._socket.receive()
            question = parse_question(raw)
            if self._questions.full():
                raise HeadraceError("too_many_responses", "Wait for an answer before you ask more.")
            self._questions.put_nowait(question)
        except HeadraceError as error:
            await self._socket.error(error)

    async def _answer_all(self) -> None:
        while True:
            question = await self._questions.get()
            try:
                _, answer = await _answer(self._front, question, _end_of)
                await self._socket.send(msgspec.json.encode(answer))
            except HeadraceError as error:
                await self._socket.error(error)
            except SocketClosed:
                raise
            except Exception:
                log.exception("a question failed")
                await self._socket.error(internal())


async def _end_of(live: Live) -> Ended:
    reader = live.reader()
    try:
        while await reader.next():
            pass
    finally:
        reader.close()
    if live.end is None:
        raise RuntimeError("the updates of a response ended before the response")
    return live.end
