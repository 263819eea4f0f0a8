"""Which requests meet under one key: those that differ in nothing that decides the tokens."""

from __future__ import annotations

import msgspec
import pytest

from gateway.cache_key import JOB_APART, PRESENTATION_APART, cache_key, may_share, tenant_tag
from schemas.ids import GatewayId, ModelToken, ResponseId, SessionToken, TenantId
from schemas.job import Job, OutputShape, Presentation
from schemas.sampling import Sampling, StructuredOutput

SECRET = b"a secret of sixteen characters"
JOB = Job(
    response=ResponseId("resp_01JD0000000000000000000000"),
    tenant=TenantId("acme"),
    session=SessionToken("s"),
    gateway=GatewayId("gw"),
    model=ModelToken("m-1"),
    model_name="m",
    prompt_ids=(1, 2, 3),
    sampling=Sampling(max_tokens=10, temperature=0, logit_bias={1: 2.0, 7: 1.0}),
    presentation=Presentation(api="responses"),
    created_unix_ms=1,
    deadline_unix_ms=2,
)

# Another value of each field that decides. A field that is in no list here nor there fails the test: decide.
JOB_DECIDES = {
    "tenant": TenantId("other"),
    "model": ModelToken("m-2"),
    "prompt_ids": (1, 2),
}
PRESENTATION_DECIDES = {"stop": ("END",), "shape": OutputShape(tool_format="hermes")}
SAMPLING_DECIDES = {
    "max_tokens": 11,
    "min_tokens": 1,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 1,
    "min_p": 0.1,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
    "repetition_penalty": 1.5,
    "seed": 1,
    "logprobs": 0,
    "logit_bias": {1: 2.0, 7: 1.5},
    "stop_token_ids": (4,),
    "ignore_eos": True,
    "bad_words": ("x",),
    "allowed_token_ids": (1,),
    "structured": StructuredOutput(json_object=True),
}
STRUCTURED_DECIDES = {
    "json_schema": "{}",
    "json_object": False,
    "regex": "a",
    "choice": ("a",),
    "grammar": "g",
}


def key(job: Job) -> str:
    return cache_key(SECRET, job)


def sampled(**changes: object) -> Job:
    return msgspec.structs.replace(JOB, sampling=msgspec.structs.replace(JOB.sampling, **changes))


def shown(**changes: object) -> Job:
    return msgspec.structs.replace(JOB, presentation=msgspec.structs.replace(JOB.presentation, **changes))


def test_every_field_is_known_to_decide_or_not() -> None:
    assert set(Job.__struct_fields__) == set(JOB_DECIDES) | JOB_APART
    assert set(Presentation.__struct_fields__) == set(PRESENTATION_DECIDES) | PRESENTATION_APART
    assert set(Sampling.__struct_fields__) == set(SAMPLING_DECIDES)
    assert set(StructuredOutput.__struct_fields__) == set(STRUCTURED_DECIDES)


def test_each_field_that_decides_gives_another_key() -> None:
    structured = StructuredOutput(json_object=True)
    others = [
        JOB,
        *(msgspec.structs.replace(JOB, **{name: value}) for name, value in JOB_DECIDES.items()),
        *(shown(**{name: value}) for name, value in PRESENTATION_DECIDES.items()),
        *(sampled(**{name: value}) for name, value in SAMPLING_DECIDES.items()),
        *(
            sampled(structured=msgspec.structs.replace(structured, **{name: value}))
            for name, value in STRUCTURED_DECIDES.items()
        ),
    ]
    assert len({key(job) for job in others}) == len(others)
    assert cache_key(b"another secret of this test", JOB) != key(JOB)


def test_what_does_not_decide_gives_the_same_key() -> None:
    changes: dict[str, object] = {
        "cache_salt": "s",
        "created_unix_ms": 5,
        "deadline_unix_ms": 6,
        "edge_ms": 1.5,
        "gateway": GatewayId("gw-2"),
        "held": True,
        "lane": "over",
        "model_name": "alias",
        "presentation": Presentation(
            api="chat", echo='{"a":1}', conversation="c", user_text="hi", cache="hit"
        ),
        "priority": "batch",
        "received_unix_ms": 4.5,
        "replay_of": JOB.response,
        "request_digest": "d",
        "response": ResponseId("resp_01JD0000000000000000000001"),
        "session": SessionToken("s2"),
        "traceparent": "t",
    }
    assert set(changes) | {"sampling"} == JOB_APART
    assert key(msgspec.structs.replace(JOB, **changes)) == key(JOB)
    assert key(sampled(logit_bias={7: 1.0, 1: 2.0})) == key(JOB)


def test_a_key_tells_neither_tenant_nor_prompt() -> None:
    assert "acme" not in key(JOB) + tenant_tag(SECRET, JOB)
    assert len(key(JOB)) == 64
    other = msgspec.structs.replace(JOB, tenant=TenantId("other"))
    assert tenant_tag(SECRET, JOB) != tenant_tag(SECRET, other)


@pytest.mark.parametrize(
    ("sampling", "auto", "on"),
    [
        (Sampling(max_tokens=5, temperature=0), True, True),
        (Sampling(max_tokens=5, temperature=0.7, top_k=1), True, True),
        (Sampling(max_tokens=5, temperature=0.7), False, True),
        (Sampling(max_tokens=5, temperature=0.7, seed=3), False, True),
        (Sampling(max_tokens=5, temperature=0, logprobs=0), False, False),
        (Sampling(max_tokens=1 << 17, temperature=0), False, False),
    ],
)
def test_who_may_share(sampling: Sampling, auto: bool, on: bool) -> None:
    assert (may_share(sampling, "auto"), may_share(sampling, "on")) == (auto, on)
    assert not may_share(sampling, "off")
