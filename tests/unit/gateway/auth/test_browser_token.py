"""Tokens for browsers: what goes in comes out, and nothing else does."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import browser_token
from gateway.auth.grant import Grant
from gateway.caller import Caller
from schemas.errors import HeadraceError
from schemas.ids import TenantId
from schemas.quota import OwnQuota

SECRET = b"a secret of sixteen characters"
NOW_S = 1_800_000_000
GRANT = Grant(
    Caller(TenantId("acme"), OwnQuota(tokens_per_minute=7, concurrent_responses=0)),
    key_id="0123456789ab",
    until_unix_s=NOW_S + 3600.5,
    origin="",
)


def token(expires_unix_s: int = NOW_S + 60, origin: str = "https://chat.example.com") -> str:
    return browser_token.mint(SECRET, GRANT, expires_unix_s=expires_unix_s, origin=origin)


def test_it_gives_what_its_key_gives_but_for_more_tokens() -> None:
    grant = browser_token.read(SECRET, token(), NOW_S)
    assert (grant.caller, grant.key_id, grant.until_unix_s) == (
        GRANT.caller,
        GRANT.key_id,
        GRANT.until_unix_s,
    )
    assert grant.origin == "https://chat.example.com"
    assert not grant.may_mint


def test_it_fits_into_a_subprotocol() -> None:
    """RFC 9110: a token."""
    allowed = set(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
    assert set(token()) <= allowed


def test_it_ends() -> None:
    assert browser_token.read(SECRET, token(), NOW_S + 59.9)
    with pytest.raises(HeadraceError, match="expired"):
        browser_token.read(SECRET, token(), NOW_S + 60)


def test_of_another_secret_it_is_nothing() -> None:
    with pytest.raises(HeadraceError, match="invalid_api_key"):
        browser_token.read(b"another secret of sixteen", token(), NOW_S)


@given(place=st.integers(0, 400), char=st.sampled_from(string.ascii_letters + string.digits + "-_."))
def test_a_changed_one_is_nothing(place: int, char: str) -> None:
    good = token()
    place = len(browser_token.PREFIX) + place % (len(good) - len(browser_token.PREFIX))
    bad = good[:place] + char + good[place + 1 :]
    if bad != good:
        with pytest.raises(HeadraceError, match="invalid_api_key"):
            browser_token.read(SECRET, bad, NOW_S)


@given(st.text())
def test_anything_else_is_nothing(text: str) -> None:
    with pytest.raises(HeadraceError, match="invalid_api_key"):
        browser_token.read(SECRET, browser_token.PREFIX + text, NOW_S)
