"""A conversation as its client may look at it: what is remembered, item by item, and forgetting it.

Names are the clients' own: a conversation begins with its first turn, there is nothing to create.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.front import Front, caller_of
from gateway.api.item_list import AnyItem, items_of, listed
from gateway.api.responses_object import item_id
from gateway.context import Context
from schemas.errors import HeadraceError


class Conversation(msgspec.Struct, frozen=True):
    """``openai.types.conversations.Conversation``"""

    id: str
    created_at: int
    metadata: dict[str, str] = {}
    object: Literal["conversation"] = "conversation"


class Deleted(msgspec.Struct, frozen=True):
    id: str
    deleted: Literal[True] = True
    object: Literal["conversation.deleted"] = "conversation.deleted"


async def retrieve(front: Front, request: Request, name: str) -> Response:
    context = await _recalled(front, request, name)
    shown = Conversation(name, context.created_unix_ms // 1000)
    return Response(msgspec.json.encode(shown), media_type="application/json")


async def items(front: Front, request: Request, name: str) -> Response:
    return listed(_items(await _recalled(front, request, name)), request.query_params)


async def delete(front: Front, request: Request, name: str) -> Response:
    if not await front.pipeline.conversations.forget(caller_of(request).tenant, name):
        raise _not_found(name)
    return Response(msgspec.json.encode(Deleted(name)), media_type="application/json")


async def _recalled(front: Front, request: Request, name: str) -> Context:
    context = await front.pipeline.conversations.recall(caller_of(request).tenant, name)
    if context is None:
        raise _not_found(name)
    return context


def _items(context: Context) -> list[AnyItem]:
    found: list[AnyItem] = []
    for turn in context.turns:
        answer = item_id(turn.response)
        for n, message in enumerate(turn.messages()):
            found += items_of(answer if n == len(turn.said) else f"{answer}_{n}", message)
    return found


def _not_found(name: str) -> HeadraceError:
    problem = f"There is no conversation {name[:80]!r}: no turn of it has ended, or its time has run out."
    return HeadraceError("conversation_not_found", problem, param="conversation_id")
