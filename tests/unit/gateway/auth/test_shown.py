"""Where a credential stands, and which address asks."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from gateway.auth.shown import address_of, credential_of, is_of_this_machine, open_subprotocol
from schemas.ids import TenantId
from schemas.key import new_key, parse_key
from schemas.quota import AS_CONFIGURED


def asked(
    headers: dict[str, str] | None = None, offered: tuple[str, ...] = (), host: str = "127.0.0.1"
) -> HTTPConnection:
    scope: dict[str, Any] = {
        "type": "websocket" if offered else "http",
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": (host, 1),
        "query_string": b"api_key=hr-no&token=no",
    }
    if offered:
        scope["subprotocols"] = list(offered)
    return HTTPConnection(scope)


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        (asked({"authorization": "Bearer k1"}), "k1"),
        (asked({"authorization": "bearer  k1 "}), "k1"),
        (asked({"authorization": "Basic k1"}), None),
        (asked({"authorization": "Bearer "}), None),
        (asked(), None),
        (asked(offered=("headrace.v1", "headrace.token.k2")), "k2"),
        (asked(offered=("realtime", "openai-insecure-api-key.k3", "openai-beta.realtime-v1")), "k3"),
        (asked(offered=("headrace.v1",)), None),
        (asked({"authorization": "Bearer k1"}, offered=("headrace.token.k2",)), "k1"),
    ],
)
def test_a_credential_stands_in_a_header_or_a_subprotocol(
    connection: HTTPConnection, expected: str | None
) -> None:
    assert credential_of(connection) == expected


def test_a_credential_is_never_the_subprotocol_that_is_taken() -> None:
    assert open_subprotocol(["headrace.token.k", "headrace.v1"]) == "headrace.v1"
    assert open_subprotocol(["openai-insecure-api-key.k"]) is None
    assert open_subprotocol([]) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.7", "203.0.113.8", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.7", "::ffff:203.0.113.8", False),
    ],
)
def test_who_counts_together(one: str, other: str, same: bool) -> None:
    assert (address_of(asked(host=one)) == address_of(asked(host=other))) is same


def test_a_proxy_on_this_machine_is_not_this_machine() -> None:
    assert is_of_this_machine(asked())
    assert not is_of_this_machine(asked({"x-forwarded-for": "203.0.113.7"}))
    assert not is_of_this_machine(asked(host="203.0.113.7"))


def test_a_key_opens_with_its_secret_alone() -> None:
    text, stored = new_key(
        TenantId("acme"), name="", quota=AS_CONFIGURED, now_unix_ms=1, expires_unix_ms=1000
    )
    parts = parse_key(text)
    assert parts is not None
    assert parts.id == stored.id
    assert stored.opens_with(parts.secret, 999)
    assert not stored.opens_with(parts.secret, 1000)
    assert not stored.opens_with(parts.secret[:-1] + "!", 999)
    assert parts.secret.encode() not in stored.digest
    assert parse_key(text + "x") is None
    assert parse_key(text.removeprefix("hr-")) is None
