"""One of each wire message, every field set, for the golden bytes."""

from __future__ import annotations

from schemas import job
from schemas.codec import Message
from schemas.ids import Fence, GatewayId, ModelToken, ResponseId, SessionToken, TenantId, WorkerId
from schemas.job import DeadLetter, Job, OutputShape, Presentation, Route, ToolCall
from schemas.key import StoredKey
from schemas.presence import WorkerCard
from schemas.quota import OwnQuota
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    Handoff,
    Joined,
    Parted,
    Started,
    Timings,
    TokenLogprobs,
    Tokens,
    Usage,
)
from schemas.sampling import Sampling, StructuredOutput

RESPONSE = ResponseId("resp_01JD0000000000000000000000")
USAGE = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=2)
TIMINGS = Timings(queue_ms=1.5, engine_queue_ms=0.5, prefill_ms=20.0, decode_ms=300.25)
LOGPROBS = (TokenLogprobs(-0.5, ((11, -0.5), (12, -1.25))), TokenLogprobs(-2.0))

MESSAGES: dict[str, Message] = {
    "job": Job(
        response=RESPONSE,
        tenant=TenantId("acme"),
        session=SessionToken("s1"),
        gateway=GatewayId("gw-1"),
        model=ModelToken("tiny-00000000"),
        model_name="tiny",
        priority="batch",
        lane="over",
        prompt_ids=(1, 200, 70_000),
        sampling=Sampling(
            max_tokens=64,
            min_tokens=1,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.05,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            repetition_penalty=1.1,
            seed=-7,
            logprobs=2,
            logit_bias={5: -1.5},
            stop_token_ids=(2,),
            ignore_eos=True,
            bad_words=("no",),
            allowed_token_ids=(1, 2, 3),
            structured=StructuredOutput(json_schema='{"type":"object"}'),
        ),
        presentation=Presentation(
            api="chat",
            stop=("END",),
            echo='{"metadata":{}}',
            conversation="conv",
            previous_response_id=RESPONSE,
            user_text="hi",
            store=False,
            input=(("system", "be brief"), ("user", "hi")),
            memory="on",
            said=(
                job.Message("assistant", "", (ToolCall("call_1", "add", '{"a":1}'),), reasoning="a sum"),
                job.Message("tool", "2", tool_call_id="call_1"),
            ),
            shape=OutputShape(
                tool_format="hermes", tools=(("add", ("note",)),), thinking="tagged", one_call=True
            ),
            rendering='{"tools":[]}',
            route=Route(requested="auto", by="auto", reason="it is quick"),
            cache="joined",
        ),
        created_unix_ms=1_700_000_000_000,
        deadline_unix_ms=1_700_000_300_000,
        cache_salt="salt",
        traceparent="00-0-0-01",
        request_id="mine-1",
        replay_of=RESPONSE,
        request_digest="d1",
        held=True,
        received_unix_ms=1_699_999_999_998.5,
        edge_ms=1.5,
    ),
    "dead": DeadLetter(
        response=RESPONSE,
        code="poison",
        message="3 attempts without a token",
        job=b"\x81\xff",
        job_subject="hr.job.tiny-00000000.batch.over.resp",
        history=("seq 4 worker w-1",),
        died_unix_ms=1_700_000_000_500,
    ),
    "worker": WorkerCard(
        worker=WorkerId("wk-1"),
        model=ModelToken("tiny-00000000"),
        model_name="tiny",
        revision="r1",
        engine="sim",
        state="draining",
        slots=8,
        running=3,
        waiting=1,
        tokens_per_s=99.5,
        kv_cache_usage=0.25,
        max_model_len=2048,
        vocab_size=512,
        tokenizer="tiny-00000000",
        started_unix_ms=1_700_000_000_000,
        seen_unix_ms=1_700_000_000_600,
        host="h",
        pid=42,
        version="0.1.0",
        interval_s=5.0,
        structured_output=True,
    ),
    "key": StoredKey(
        id="0123456789ab",
        digest=bytes(range(32)),
        tenant=TenantId("acme"),
        name="the web shop",
        quota=OwnQuota(requests_per_minute=60, tokens_per_minute=10_000, concurrent_responses=4),
        created_unix_ms=1_700_000_000_000,
        expires_unix_ms=1_800_000_000_000,
    ),
    "started": Started(
        attempt=2,
        worker=WorkerId("wk-1"),
        ack_subject="$JS.ACK.x",
        delivered=3,
        pulled_unix_ms=1_700_000_000_001,
        queued_unix_ms=1_700_000_000_000.25,
        traceparent="00-0-1-01",
    ),
    "handoff": Handoff(fence=Fence(17)),
    "joined": Joined(leader=RESPONSE),
    "parted": Parted(ids=(11, 12)),
    "closed": Closed(
        reason="stop", code="cancelled", message="m", total=2, ids=(11, 12), usage=USAGE, finish="stop"
    ),
    "tokens": Tokens(fence=Fence(17), offset=1, ids=(11, 12), logprobs=LOGPROBS),
    "finished": Finished(
        fence=Fence(17),
        total=2,
        reason="stop",
        ids=(11, 12),
        usage=USAGE,
        timings=TIMINGS,
        stop_token=2,
        logprobs=LOGPROBS,
    ),
    "failed": Failed(fence=Fence(17), code="engine_rejected", message="bad grammar", total=1),
}
