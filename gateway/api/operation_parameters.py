"""Path, query and header parameters of the HTTP routes, each described once; ``operations`` names them."""

from __future__ import annotations

from typing import Any

from gateway.api import item_list
from gateway.api.correlation import MAX_REQUEST_ID
from gateway.api.http_request import MAX_KEY
from schemas.ids import RESPONSE_PATTERN

PARAMETERS: dict[str, dict[str, Any]] = {
    "response_id": {
        "name": "response_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": RESPONSE_PATTERN.replace(r"\Z", "$")},
    },
    "model": {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "A model's id; it may hold slashes.",
        "schema": {"type": "string", "minLength": 1},
    },
    "conversation": {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "As the client has named it; it may hold slashes.",
        "schema": {"type": "string", "minLength": 1},
    },
    "after": {
        "name": "after",
        "in": "query",
        "description": "The id of an item: those behind it are listed.",
        "schema": {"type": "string"},
    },
    "limit": {
        "name": "limit",
        "in": "query",
        "schema": {
            "type": "integer",
            "minimum": 1,
            "maximum": item_list.MAX_LIMIT,
            "default": item_list.DEFAULT_LIMIT,
        },
    },
    "order": {
        "name": "order",
        "in": "query",
        "description": "`desc`: the latest first.",
        "schema": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
    },
    "stream": {
        "name": "stream",
        "in": "query",
        "description": "Whether the events are sent, from the first one or from behind `starting_after`.",
        "schema": {"type": "boolean", "default": False},
    },
    "starting_after": {
        "name": "starting_after",
        "in": "query",
        "description": "The last `sequence_number` that was seen; -1: none. Needs `stream=true`.",
        "schema": {"type": "integer", "minimum": -1, "maximum": 10**15 - 1},
    },
    "include_obfuscation": {
        "name": "include_obfuscation",
        "in": "query",
        "description": "Events are never padded.",
        "schema": {"type": "boolean", "enum": [False]},
    },
    "idempotency_key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Sent again with the same key, a request gets the response to the first.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
    },
    "traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C Trace Context. As that demands, a malformed one is taken for none.",
        "schema": {"type": "string"},
    },
    "client_request_id": {
        "name": "X-Client-Request-Id",
        "in": "header",
        "description": "Your own name for the request: it stands in logs and traces.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_REQUEST_ID, "pattern": "^[!-~]+$"},
    },
}
