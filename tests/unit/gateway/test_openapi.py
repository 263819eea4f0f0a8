"""The document of the routes: valid, complete, and of nothing that is not there."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from openapi_spec_validator import validate
from starlette.applications import Starlette

from gateway.api.app import Served, build
from gateway.api.front import Front
from gateway.api.openapi import document
from gateway.api.operation_parameters import PARAMETERS
from gateway.api.operations import OPERATIONS, TAGS
from gateway.pipeline import Pipeline
from schemas.config import Gateway
from schemas.errors import ERRORS

# what only a WebSocket is told, and what is said where no operation is
SOCKETS = {"unknown_event", "too_many_responses"}
NOWHERE = {"method_not_allowed"}


def routes() -> set[tuple[str, str]]:
    layer: Any = build(Front(cast(Pipeline, None), Gateway()))
    while not isinstance(layer, Starlette):
        layer = layer._app
    return {
        (method.lower(), re.sub(r":\w+}", "}", route.path))
        for route in layer.routes
        if isinstance(route, Served) and route.include_in_schema
        for method in route.methods
    }


def test_it_is_a_valid_document() -> None:
    validate(cast(Any, document()))


def test_it_describes_each_route_and_no_other() -> None:
    assert {(o.method, o.path) for o in OPERATIONS} == routes()
    assert len({o.id for o in OPERATIONS}) == len(OPERATIONS)
    assert {o.tag for o in OPERATIONS} == set(TAGS)
    assert {name for o in OPERATIONS for name in o.parameters} == set(PARAMETERS)


def test_every_code_that_http_tells_is_described() -> None:
    described = {code for o in OPERATIONS for code in o.refusals}
    assert described == set(ERRORS) - SOCKETS - NOWHERE


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    shown = document()
    found = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(shown)))
    assert found == set(shown["components"]["schemas"])


def test_a_body_names_what_it_refuses() -> None:
    schemas = document()["components"]["schemas"]
    for operation in OPERATIONS:
        if operation.body is None:
            continue
        post = document()["paths"][operation.path]["post"]
        ref = post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = schemas[ref.rsplit("/", 1)[-1]]
        assert schema["additionalProperties"] is False
        for name, instead in operation.body.refused.items():
            assert schema["properties"][name]["type"] == "null"
            assert instead in schema["properties"][name]["description"]
