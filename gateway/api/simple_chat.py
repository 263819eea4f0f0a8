"""The simple chat: a question with a user's id in, one answer out; the user's conversation is remembered.

``POST /chat`` and WebSocket ``/ws/chat`` take ``{user_id, query}``.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.chat_events import failure, finish_reason
from gateway.api.errors import coded
from gateway.api.front import Front
from gateway.api.http_request import generate, give_up, read_object, submit, until_ended
from gateway.api.parse_chat import Question, parse_question, question_generation
from gateway.api.sockets import Socket, SocketClosed
from gateway.caller import Caller
from gateway.generation import Ended
from gateway.live import Live, now_ms
from schemas.errors import HeadraceError

_NAMES = {"input": "query"}


class Answer(msgspec.Struct, frozen=True):
    """``latency_ms``: question received to answer complete."""

    user_id: str
    query: str
    response: str
    latency_ms: float


async def post(front: Front, request: Request) -> Response:
    """Raises ``HeadraceError``, ``ClientGone``."""
    question = parse_question(await read_object(request, front.limits.max_message_bytes))
    began_s = time.perf_counter()

    async def answer(live: Live, end: Ended) -> Answer:
        return _answer(question, live, end, began_s)

    to_generation = partial(question_generation, question)
    return await generate(front, request, to_generation, stream=None, answer=answer, names=_NAMES)


def _answer(question: Question, live: Live, end: Ended, began_s: float) -> Answer:
    if finish_reason(end) is None:
        raise failure(end)
    latency_ms = round((time.perf_counter() - began_s) * 1000, 3)
    return Answer(question.user_id, question.query, live.text, latency_ms)


class SimpleChatSession:
    """Questions of one WebSocket are answered in their order: a user's next one may need the last answer.
    As many may wait as ``gateway.max_responses_per_connection``; beyond, too_many_responses."""

    def __init__(self, front: Front, socket: Socket, caller: Caller) -> None:
        self._front = front
        self._caller = caller
        self._socket = socket
        self._questions: asyncio.Queue[Question] = asyncio.Queue(front.limits.max_responses_per_connection)
        self._live: Live | None = None  # what is being answered

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._socket.attend_shutdown(tasks)
                tasks.create_task(self._answer_all(), name="answer-questions")
                while True:
                    await self._take()
        except* SocketClosed:
            pass
        if self._live is not None:
            await give_up(self._front, self._live)

    async def _take(self) -> None:
        try:
            question = parse_question(await self._socket.receive())
            if self._questions.full():
                raise HeadraceError("too_many_responses", "Wait for an answer before you ask more.")
            self._questions.put_nowait(question)
        except SocketClosed:
            raise
        except Exception as error:
            await self._socket.error(coded(error))

    async def _answer_all(self) -> None:
        while True:
            question = await self._questions.get()
            try:
                answer = await self._ask(question)
                await self._socket.send(msgspec.json.encode(answer))
            except SocketClosed:
                raise
            except Exception as error:
                await self._socket.error(coded(error))

    async def _ask(self, question: Question) -> Answer:
        began_s = time.perf_counter()
        generation = question_generation(
            question, caller=self._caller, limits=self._front.limits, received_unix_ms=now_ms()
        )
        with self._front.answering():
            self._live = await submit(self._front, replace(generation, rtt_ms=self._socket.rtt_ms), _NAMES)
            end = await until_ended(self._front, self._live)
        return _answer(question, self._live, end, began_s)
