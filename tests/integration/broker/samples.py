"""Messages for broker tests, and waiting for conditions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from schemas.ids import (
    Fence,
    GatewayId,
    ResponseId,
    SessionToken,
    TenantId,
    WorkerId,
    model_token,
    new_response_id,
)
from schemas.job import Job, Lane, Presentation, Priority
from schemas.reply import Finished, Started, Tokens, Usage
from schemas.sampling import Sampling

MODEL = model_token("demo", "1")
GATEWAY = GatewayId("gw-1")
SESSION = SessionToken("s1")


def make_job(
    response: ResponseId | None = None, *, priority: Priority = "interactive", lane: Lane = "fair"
) -> Job:
    now = int(time.time() * 1000)
    return Job(
        response=response or new_response_id(),
        tenant=TenantId("acme"),
        session=SESSION,
        gateway=GATEWAY,
        model=MODEL,
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
