"""A stored job."""

from __future__ import annotations

from schemas.ids import GatewayId, ModelToken, ResponseId, SessionToken, TenantId
from schemas.job import Job, Presentation, Route
from schemas.sampling import Sampling

JOB = Job(
    response=ResponseId("resp_01JD0000000000000000000000"),
    tenant=TenantId("acme"),
    session=SessionToken("s1"),
    gateway=GatewayId("gw-1"),
    model=ModelToken("tiny-00000000"),
    model_name="tiny",
    priority="standard",
    prompt_ids=(1, 2, 3),
    sampling=Sampling(max_tokens=64, temperature=0.5),
    presentation=Presentation(
        api="responses",
        conversation="c",
        previous_response_id="resp_01JC0000000000000000000000",
        memory="on",
        cache="miss",
        route=Route(requested="auto", by="auto", reason="idle"),
    ),
    created_unix_ms=1_000_000,
    deadline_unix_ms=1_090_000,
    cache_salt="salt",
    traceparent="00-0-0-01",
    request_digest="d",
    held=True,
)
