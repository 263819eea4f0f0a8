"""Items of a conversation or of a request, listed as OpenAI lists them. Must not know where they come from.

Types: ``openai.types.conversations.ConversationItemList``, ``openai.types.responses.ResponseItemList``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response

from gateway.api.parse_json import unknown_parameter
from schemas.errors import HeadraceError
from schemas.job import Message

_KNOWN = ("after", "limit", "order")
DEFAULT_LIMIT, MAX_LIMIT = 20, 100


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: tuple[()] = ()


class Item(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    role: str
    content: tuple[InputText | OutputText]
    status: Literal["completed"] = "completed"


class FunctionCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed"] = "completed"


class FunctionCallOutput(msgspec.Struct, frozen=True, tag_field="type", tag="function_call_output"):
    id: str
    call_id: str
    output: str
    status: Literal["completed"] = "completed"


AnyItem = Item | FunctionCall | FunctionCallOutput


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    data: Sequence[AnyItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


def items_of(id: str, message: Message) -> list[AnyItem]:
    """A message's: its words, and its calls or whose output it is. ``id``: of the first."""
    if message.tool_call_id is not None:
        return [FunctionCallOutput(id, message.tool_call_id, message.content)]
    found: list[AnyItem] = []
    if message.content or not message.tool_calls:
        text = OutputText(message.content) if message.role == "assistant" else InputText(message.content)
        found.append(Item(id, message.role, (text,)))
    found += [
        FunctionCall(f"{id}_{call.id}", call.id, call.name, call.arguments) for call in message.tool_calls
    ]
    return found


def listed(items: Sequence[AnyItem], query: QueryParams) -> Response:
    """``items``: the oldest first. Raises ``HeadraceError``."""
    for name in query:
        if name in ("include", "include[]"):
            raise HeadraceError("unsupported_parameter", "include: leave it out.", param="include")
        if name not in _KNOWN:
            raise unknown_parameter(name, _KNOWN)
    order, limit = query.get("order", "desc"), query.get("limit", str(DEFAULT_LIMIT))
    if order not in ("asc", "desc"):
        raise HeadraceError("invalid_value", "order: say asc or desc.", param="order")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= MAX_LIMIT):
        raise HeadraceError("invalid_value", f"limit: give 1 to {MAX_LIMIT}.", param="limit")
    ordered = list(items) if order == "asc" else list(items)[::-1]
    after = query.get("after")
    if after is not None:
        place = next((n for n, item in enumerate(ordered) if item.id == after), None)
        if place is None:
            raise HeadraceError("invalid_value", "after: there is no such item here.", param="after")
        ordered = ordered[place + 1 :]
    shown = ordered[: int(limit)]
    body = ItemList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(shown) < len(ordered),
    )
    return Response(msgspec.json.encode(body), media_type="application/json")
