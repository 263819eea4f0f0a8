from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from gateway.api.correlation import MAX_REQUEST_ID, request_id, traceparent
from schemas.errors import HeadraceError

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def connection(**headers: str) -> HTTPConnection:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": raw})


def test_the_client_s_own_id_goes_before_a_proxy_s() -> None:
    assert request_id(connection()) == ""
    assert request_id(connection(x_request_id="proxy-1")) == "proxy-1"
    assert request_id(connection(x_request_id="proxy-1", x_client_request_id="mine")) == "mine"
    assert request_id(connection(x_client_request_id="x" * MAX_REQUEST_ID)) == "x" * MAX_REQUEST_ID


@pytest.mark.parametrize("bad", ["", "two words", "x" * (MAX_REQUEST_ID + 1), "caf\xe9", "a\tb"])
def test_one_that_cannot_stand_in_a_log_is_refused_and_a_proxy_s_dropped(bad: str) -> None:
    with pytest.raises(HeadraceError) as refused:
        request_id(connection(x_client_request_id=bad))
    assert (refused.value.code, refused.value.param) == ("invalid_value", "x-client-request-id")
    assert request_id(connection(x_request_id=bad)) == ""


def test_a_malformed_traceparent_is_none() -> None:
    assert traceparent(connection(traceparent=GOOD)) == GOOD
    for bad in ("", GOOD.upper(), GOOD[:-1], f"{GOOD}-more"):
        assert traceparent(connection(traceparent=bad)) is None
