"""Writes the table of operations out as an OpenAPI document. Pure; must not know any route by name.

OpenAPI 3.2 is the first version that describes event streams (``itemSchema``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any, get_args

import msgspec

from gateway.api.errors import HttpError
from gateway.api.operation_parameters import PARAMETERS
from gateway.api.operations import OPERATIONS, TAGS, Body, Operation, Stream, Struct
from schemas.errors import ERRORS

Json = dict[str, Any]
_AT = "#/components/{}/{}"
_REF = _AT.format("schemas", "{name}")
_PACKAGE = "gateway.api."
_TEXT = {"schema": {"type": "string"}}
HEADERS: Json = {
    "RequestId": {
        "description": "The id of the response: with it, any API's can be retrieved and cancelled.",
        "schema": {"type": "string"},
    },
    "RetryAfter": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}},
}
SECURITY: Json = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "Where the gateway asks who is there.",
    }
}


@cache
def encoded() -> bytes:
    """As JSON. Written when it is first asked for: it takes some 50 ms."""
    return msgspec.json.encode(document())


def document() -> Json:
    """Of all operations, as plain values."""
    schemas = _Schemas(OPERATIONS)
    paths: Json = defaultdict(dict)
    for operation in OPERATIONS:
        paths[operation.path][operation.method] = _operation(operation, schemas)
    return {
        "openapi": "3.2.0",
        "info": {
            "title": "Headrace gateway",
            "version": version("headrace"),
            "description": "Chat models behind a durable queue, in OpenAI's protocols.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"bearer": []}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": dict(paths),
        "components": {
            "schemas": schemas.components,
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "securitySchemes": SECURITY,
        },
    }


class _Schemas:
    """The JSON Schema of every struct that goes over the wire, under its name in the document."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        structs: dict[Struct, None] = {HttpError: None}  # in the order of the table, each once
        for operation in operations:
            structs.update(dict.fromkeys(_structs(operation)))
        references, components = msgspec.json.schema_components(structs, ref_template=_REF)
        self.components = {_short(name): _shortened(schema) for name, schema in components.items()}
        self._references = {
            struct: _shortened(reference) for struct, reference in zip(structs, references, strict=True)
        }
        for struct in structs:
            self._mark_optional(struct)
        for operation in operations:
            if operation.body is not None:
                self._describe_refused(operation.body)
        error = self.components["ErrorBody"]["properties"]
        error["code"]["enum"] = sorted(ERRORS)
        error["type"]["enum"] = sorted({spec.type for spec in ERRORS.values()})

    def ref(self, struct: Struct) -> Json:
        return self._references[struct]

    def _component(self, struct: Struct) -> Json:
        found: Json = self.components[self.ref(struct)["$ref"].rsplit("/", 1)[-1]]
        return found

    def _mark_optional(self, struct: Struct) -> None:
        """What may be unset is not sent then, whether it has a default or not."""
        unset = {
            f.encode_name for f in msgspec.structs.fields(struct) if msgspec.UnsetType in get_args(f.type)
        }
        component = self._component(struct)
        component["required"] = [name for name in component.get("required", ()) if name not in unset]

    def _describe_refused(self, body: Body) -> None:
        properties = self._component(body.struct)["properties"]
        for name, instead in body.refused.items():
            properties[name] = {"type": "null", "description": f"Not supported: {instead}."}


def _structs(operation: Operation) -> Iterable[Struct]:
    if operation.body is not None:
        yield operation.body.struct
    if not isinstance(operation.answers, tuple):
        yield operation.answers
    if operation.stream is not None:
        yield from operation.stream.structs


def _operation(operation: Operation, schemas: _Schemas) -> Json:
    described: Json = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": _responses(operation, schemas),
    }
    if operation.description:
        described["description"] = operation.description
    if operation.parameters:
        described["parameters"] = [{"$ref": _AT.format("parameters", name)} for name in operation.parameters]
    if operation.body is not None:
        body = operation.body
        content = {"application/json": {"schema": schemas.ref(body.struct), "example": body.example}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _responses(operation: Operation, schemas: _Schemas) -> Json:
    content: Json = {}
    if isinstance(operation.answers, tuple):
        content = dict.fromkeys(operation.answers, _TEXT)
    else:
        content["application/json"] = {"schema": schemas.ref(operation.answers)}
    if operation.stream is not None:
        content["text/event-stream"] = {"itemSchema": _event(operation.stream, schemas)}
    answer: Json = {"description": operation.summary, "content": content}
    if operation.names_response:
        answer["headers"] = {"X-Request-Id": {"$ref": _AT.format("headers", "RequestId")}}
    responses = {"200": answer}
    codes: dict[int, list[str]] = defaultdict(list)
    for code in sorted(set(operation.refusals)):
        codes[ERRORS[code].http_status].append(code)
    for status in sorted(codes):
        responses[str(status)] = _refusal(codes[status], schemas)
    if operation.or_unavailable:
        responses["503"] = {
            "description": operation.or_unavailable,
            "headers": _retry_after(),
            "content": {"text/plain": _TEXT},
        }
    return responses


def _refusal(codes: list[str], schemas: _Schemas) -> Json:
    refusal: Json = {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {"application/json": {"schema": schemas.ref(HttpError)}},
    }
    if any(ERRORS[code].retry_after_s is not None for code in codes):
        refusal["headers"] = _retry_after()
    return refusal


def _retry_after() -> Json:
    return {"Retry-After": {"$ref": _AT.format("headers", "RetryAfter")}}


def _event(stream: Stream, schemas: _Schemas) -> Json:
    """One server-sent event, as OpenAPI 3.2 has it: an object of its fields, ``data`` a string."""
    json = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [schemas.ref(struct) for struct in stream.structs]},
    }
    data = json if stream.ends_with is None else {"anyOf": [{"const": stream.ends_with}, json]}
    named: Json = (
        {"event": {"type": "string", "description": "As `type` in the data."}} if stream.named else {}
    )
    return {"type": "object", "required": [*named, "data"], "properties": {**named, "data": data}}


def _short(name: str) -> str:
    """Structs of the same name in two modules come with the modules' full names."""
    return name.removeprefix(_PACKAGE)


def _shortened(schema: Json) -> Json:
    """With short references, and patterns as JSON Schema writes them."""
    text = msgspec.json.encode(schema).decode()
    text = text.replace(_REF.format(name=_PACKAGE), _REF.format(name="")).replace(r'\\Z"', '$"')
    shortened: Json = msgspec.json.decode(text)
    return shortened
