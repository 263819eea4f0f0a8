"""Messages for broker tests, and waiting for conditions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from broker.connection import Broker
from broker.log_writer import LogWriter
from broker.replylog import ReplyLog
from schemas.ids import (
    Fence,
    GatewayId,
    ModelToken,
    ResponseId,
    SessionToken,
    TenantId,
    WorkerId,
    model_token,
    new_response_id,
)
from schemas.job import Job, Lane, Presentation, Priority
from schemas.reply import Finished, Started, Timings, Tokens, Usage
from schemas.sampling import Sampling

MODEL = model_token("demo", "1")
GATEWAY = GatewayId("gw-1")
SESSION = SessionToken("s1")


def make_job(
    response: ResponseId | None = None,
    *,
    model: ModelToken = MODEL,
    priority: Priority = "interactive",
    lane: Lane = "fair",
) -> Job:
    now = int(time.time() * 1000)
    return Job(
        response=response or new_response_id(),
        tenant=TenantId("acme"),
        session=SESSION,
        gateway=GATEWAY,
        model=model,
        model_name="demo",
        priority=priority,
        lane=lane,
        prompt_ids=(1, 2, 3),
        sampling=Sampling(max_tokens=8),
        presentation=Presentation(api="responses"),
        created_unix_ms=now,
        deadline_unix_ms=now + 60_000,
    )


def make_started(worker: str = "w-1") -> Callable[[int], Started]:
    return lambda attempt: Started(attempt=attempt, worker=WorkerId(worker), ack_subject="$JS.ACK.x")


def make_finished(fence: Fence, ids: tuple[int, ...]) -> Finished:
    return Finished(
        fence=fence, total=len(ids), reason="stop", ids=ids, usage=Usage(completion_tokens=len(ids))
    )


def make_tokens(fence: Fence, offset: int, *ids: int) -> Tokens:
    return Tokens(fence=fence, offset=offset, ids=ids)


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


async def write_by_the_rules(writer_broker: Broker, reply_log: ReplyLog, total: int) -> None:
    """A whole response, token by token: confirm now and then, rewind after a break."""
    claim = await reply_log.claim(make_started())
    assert claim.fence is not None
    writer = LogWriter(claim.fence)
    writer_broker.on_reconnect(writer.rewind)
    for token in range(total):
        writer.append([token])
        tokens = writer.take()
        assert tokens is not None
        if token % 50:
            await reply_log.send_tokens(tokens)
        elif await reply_log.send_tokens_confirmed(tokens, 1.0):
            writer.confirmed(tokens.offset + len(tokens.ids))
        else:
            writer.rewind()
        await asyncio.sleep(0.0005)
    await reply_log.end(writer.finished("stop", Usage(), Timings()))
