"""The new job, and what may be changed on it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from broker.jobs import _job_headers
from deploy.replay.copies import ChangeError, apply_changes, check_fits, copy_of, parse_changes
from gateway.cache_key import JOB_APART
from gateway.catalog import ModelCard
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ModelToken, new_response_id
from schemas.job import Job
from schemas.sampling import Sampling, StructuredOutput
from tests.unit.deploy.replay.samples import JOB

CARD = ModelCard(
    name="tiny",
    token=ModelToken("tiny-00000000"),
    revision="r",
    max_model_len=100,
    vocab_size=9,
    tokenizer="tiny-00000000",
    workers=1,
    slots=1,
    running=0,
    waiting=0,
    created_unix_ms=0,
)


def copied(**given: Any) -> Job:
    usual: dict[str, Any] = {
        "response": new_response_id(),
        "gateway": GatewayId("replay-1"),
        "card": CARD,
        "sampling": JOB.sampling,
        "prompt_ids": JOB.prompt_ids,
        "shape": None,
        "keep_class": False,
        "now_unix_ms": 5_000_000,
    }
    return copy_of(JOB, **(usual | given))


def test_a_copy_asks_the_same_and_touches_nothing() -> None:
    copy = copied()
    for name in ("tenant", "model", "model_name", "prompt_ids", "sampling", "cache_salt"):
        assert getattr(copy, name) == getattr(JOB, name)
    shown = copy.presentation
    assert (shown.conversation, shown.previous_response_id, shown.store) == (None, None, False)
    assert (shown.memory, shown.cache) == ("none", "none")
    assert (copy.replay_of, copy.held, copy.request_digest, copy.traceparent) == (
        JOB.response,
        False,
        "",
        None,
    )
    assert copy.response != JOB.response
    assert (copy.priority, copy.lane) == ("batch", "over")
    assert (copy.created_unix_ms, copy.deadline_unix_ms) == (5_000_000, 5_090_000)
    assert "replay_of" in JOB_APART


def test_it_may_keep_its_class() -> None:
    copy = copied(keep_class=True)
    assert (copy.priority, copy.lane) == ("standard", "fair")


def test_a_header_names_the_origin() -> None:
    assert _job_headers(copied())["Hr-Replay-Of"] == JOB.response
    assert "Hr-Replay-Of" not in _job_headers(JOB)


def test_changes_have_sampling_s_own_types() -> None:
    changes = parse_changes(
        [
            "temperature=0",
            "seed=null",
            "stop_token_ids=[4]",
            'logit_bias={"5": -1}',
            'structured={"regex": "a+"}',
        ]
    )
    assert apply_changes(Sampling(max_tokens=9, seed=1, top_p=0.5), changes) == Sampling(
        max_tokens=9,
        top_p=0.5,
        temperature=0,
        stop_token_ids=(4,),
        logit_bias={5: -1},
        structured=StructuredOutput(regex="a+"),
    )


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        ("temperature", "expected NAME=VALUE"),
        ("temprature=0", "there is no parameter 'temprature'; there are allowed_token_ids, bad_words"),
        ("temperature=3", r"--set temperature=3: Expected `float` <= 2"),
        ("max_tokens=0", "Expected `int` >= 1"),
        ("max_tokens=null", "Expected `int`, got `null`"),
        ("seed=x", "Expected `int"),
        ("stop_token_ids=[-1]", "Expected `int` >= 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(pair: str, problem: str) -> None:
    with pytest.raises(ChangeError, match=problem):
        parse_changes([pair])


@pytest.mark.parametrize(
    ("sampling", "code"),
    [
        (Sampling(max_tokens=98), "context_length_exceeded"),
        (Sampling(max_tokens=3, min_tokens=4), "invalid_value"),
        (Sampling(max_tokens=3, structured=StructuredOutput(json_object=True)), "unsupported_parameter"),
    ],
)
def test_what_the_model_cannot_do_is_not_sent(sampling: Sampling, code: str) -> None:
    check_fits(3, Sampling(max_tokens=97), CARD)
    with pytest.raises(HeadraceError) as refused:
        check_fits(3, sampling, CARD)
    assert refused.value.code == code


def test_the_sample_differs_from_every_default_that_a_copy_resets() -> None:
    """Else the test above would show nothing."""
    shown = JOB.presentation
    for field in msgspec.structs.fields(type(shown)):
        if field.name in ("conversation", "previous_response_id", "memory", "cache", "route"):
            assert getattr(shown, field.name) != field.default
