from __future__ import annotations

import pytest

from broker import subjects
from schemas import ids
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, TenantId

SECRET = b"0123456789abcdef"


def test_response_ids_are_unique_and_parse() -> None:
    made = {ids.new_response_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(ids.parse_response_id(text) == text for text in made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resp_",
        "resp_*",
        "resp_01K0000000000000000000000.",
        "resp_01k0000000000000000000000",
        "x" * 5000,
        ids.new_response_id() + "\n",
    ],
)
def test_ids_that_cannot_exist_are_not_found(text: str) -> None:
    with pytest.raises(HeadraceError) as refused:
        ids.parse_response_id(text)
    assert refused.value.code == "response_not_found"


@pytest.mark.parametrize("text", ["", "a.b", "a b", "*", ">", "a" * 65, "é", "a\n"])
def test_subject_tokens_are_checked(text: str) -> None:
    with pytest.raises(ValueError, match="subject token"):
        ids.parse_token(text)


def test_sessions_of_two_tenants_never_meet() -> None:
    first = ids.session_token(SECRET, TenantId("a"), "b\x00c")
    assert first == ids.session_token(SECRET, TenantId("a"), "b\x00c")
    assert first != ids.session_token(SECRET, TenantId("b"), "b\x00c")
    assert first != ids.session_token(b"another secret!!", TenantId("a"), "b\x00c")
    assert ids.parse_token(first) == first


@pytest.mark.parametrize("name", ["org/Model-7B.v2", "模型", "a" * 300, "../../etc", "a.b.*.>"])
def test_model_tokens_are_subject_tokens(name: str) -> None:
    token = ids.model_token(name, "rev1")
    assert ids.parse_token(token) == token
    assert token != ids.model_token(name, "rev2")


def test_reply_subject_round_trip() -> None:
    response = ids.new_response_id()
    session = ids.session_token(SECRET, TenantId("a"), "chat")
    prefix = subjects.reply(GatewayId("gw-1"), response, session)
    parsed = subjects.parse_reply(prefix + ".f")
    assert (parsed.gateway, parsed.response, parsed.session, parsed.part) == ("gw-1", response, session, "f")


@pytest.mark.parametrize(
    "subject", ["hr.reply.a.b.c", "hr.reply.a.b.c.x", "hr.job.a.b.c.d", "x.reply.a.b.c.t"]
)
def test_other_subjects_are_no_reply_subjects(subject: str) -> None:
    with pytest.raises(ValueError, match="not a reply subject"):
        subjects.parse_reply(subject)
