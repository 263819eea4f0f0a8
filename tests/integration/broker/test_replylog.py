"""The reply log's conditions on a real server: claims, fences, terminals, leases."""

from __future__ import annotations

import asyncio

import pytest

from broker import jetstream
from broker.connection import Broker
from broker.replylog import FenceLost, ReplyLog
from schemas.errors import HeadraceError
from schemas.ids import Fence, new_response_id
from schemas.reply import Closed, Failed, Finished, Handoff, Joined, Parted, Started
from tests.integration.broker.samples import (
    GATEWAY,
    SESSION,
    make_finished,
    make_started,
    make_tokens,
    until,
)
from tests.integration.conftest import NatsServer


@pytest.fixture
def reply_log(broker: Broker) -> ReplyLog:
    return ReplyLog(broker, GATEWAY, new_response_id(), SESSION)


async def fence_of(reply_log: ReplyLog, worker: str = "w-1") -> Fence:
    claim = await reply_log.claim(make_started(worker))
    assert claim.fence is not None
    return claim.fence


async def test_the_first_claim_has_no_history(reply_log: ReplyLog) -> None:
    claim = await reply_log.claim(make_started())
    assert claim.fence is not None
    assert claim.history.attempts == 0
    lease = await reply_log.lease()
    assert lease is not None
    assert lease[0] == claim.fence
    assert isinstance(lease[1], Started)


async def test_a_log_without_messages(reply_log: ReplyLog) -> None:
    assert await reply_log.lease() is None
    assert (await reply_log.read()).ids == []


async def test_a_whole_response_reads_back(reply_log: ReplyLog) -> None:
    fence = await fence_of(reply_log)
    await reply_log.send_tokens(make_tokens(fence, 0, 1, 2))
    assert await reply_log.send_tokens_confirmed(make_tokens(fence, 2, 3), 5)
    await reply_log.end(make_finished(fence, (1, 2, 3)))
    reader = await reply_log.read()
    assert reader.ids == [1, 2, 3]
    assert reader.end is not None
    assert isinstance(reader.end.message, Finished)


async def test_more_than_one_batch_reads_back(reply_log: ReplyLog) -> None:
    fence = await fence_of(reply_log)
    for offset in range(2500):
        await reply_log.send_tokens(make_tokens(fence, offset, offset))
    assert await reply_log.send_tokens_confirmed(make_tokens(fence, 2500, 2500), 5)
    assert (await reply_log.read()).ids == list(range(2501))


async def test_the_next_writer_continues_and_the_old_one_is_fenced_off(reply_log: ReplyLog) -> None:
    old = await fence_of(reply_log)
    await reply_log.send_tokens(make_tokens(old, 0, 1, 2))
    claim = await reply_log.claim(make_started("w-2"))
    assert claim.fence is not None
    assert claim.history.ids == [1, 2]
    assert claim.history.attempts == 1
    assert claim.history.last_started is not None
    assert claim.history.last_started.worker == "w-1"

    await reply_log.send_tokens(make_tokens(old, 2, 99))  # too late: no reader takes it
    with pytest.raises(FenceLost) as lost:
        await reply_log.end(make_finished(old, (1, 2, 99)))
    assert not lost.value.ended
    assert not await reply_log.hand_off(old)
    lease = await reply_log.lease()
    assert lease is not None
    assert lease[0] == claim.fence

    await reply_log.end(make_finished(claim.fence, (1, 2, 3)))
    assert (await reply_log.read()).ids == [1, 2, 3]


async def test_attempts_are_counted_in_started(reply_log: ReplyLog) -> None:
    seen: list[int] = []

    def started(attempt: int) -> Started:
        seen.append(attempt)
        return make_started()(attempt)

    await reply_log.claim(started)
    await reply_log.claim(started)
    assert seen[-1] == 2
    assert (await reply_log.read()).attempts == 2


async def test_an_ended_log_is_not_claimed_and_nothing_is_written(
    broker: Broker, reply_log: ReplyLog
) -> None:
    fence = await fence_of(reply_log)
    seq = await reply_log.end(make_finished(fence, (7,)))
    claim = await reply_log.claim(make_started("w-2"))
    assert claim.fence is None
    assert claim.history.end is not None
    assert claim.history.end.seq == seq
    stored = [m async for m in jetstream.messages(broker, "REPLIES", "hr.reply.>")]
    assert len(stored) == 2


async def test_a_poisoned_log_is_not_claimed(reply_log: ReplyLog) -> None:
    for _ in range(3):
        await fence_of(reply_log)
    claim = await reply_log.claim(make_started())
    assert claim.fence is None
    assert claim.history.end is None
    assert claim.history.is_poison()


async def test_a_hand_off_is_no_failed_attempt(reply_log: ReplyLog) -> None:
    for _ in range(4):
        assert await reply_log.hand_off(await fence_of(reply_log))
    lease = await reply_log.lease()
    assert lease is not None
    assert isinstance(lease[1], Handoff)
    assert (await reply_log.claim(make_started())).fence is not None


async def test_a_closed_response_refuses_its_writers_end(reply_log: ReplyLog) -> None:
    fence = await fence_of(reply_log)
    assert await reply_log.send_tokens_confirmed(make_tokens(fence, 0, 1), 5)
    seq = await reply_log.close(Closed(reason="cancelled"))
    with pytest.raises(FenceLost) as lost:
        await reply_log.end(Failed(fence=fence, code="internal_error", message="m"))
    assert lost.value.ended
    reader = await reply_log.read()
    assert reader.end is not None
    assert (reader.end.seq, reader.end.total) == (seq, 1)


async def test_a_closed_response_without_a_writer_is_not_claimed(reply_log: ReplyLog) -> None:
    await reply_log.close(Closed(reason="cancelled"))
    claim = await reply_log.claim(make_started())
    assert claim.fence is None


async def test_an_end_whose_ack_was_lost_is_found_again(reply_log: ReplyLog) -> None:
    fence = await fence_of(reply_log)
    first = await reply_log.end(make_finished(fence, (1,)))
    assert await reply_log.end(make_finished(fence, (1,))) == first


async def test_an_end_outlasts_a_restart(
    reply_log: ReplyLog, broker: Broker, nats_server: NatsServer
) -> None:
    fence = await fence_of(reply_log)
    assert await reply_log.send_tokens_confirmed(make_tokens(fence, 0, 1), 5)
    nats_server.kill()
    ending = asyncio.create_task(reply_log.end(make_finished(fence, (1, 2))))
    await until(lambda: not broker.connected)
    await reply_log.send_tokens(make_tokens(fence, 1, 2))  # neither raises nor blocks
    assert not await reply_log.send_tokens_confirmed(make_tokens(fence, 1, 2), 0.1)
    with pytest.raises(HeadraceError):
        await reply_log.lease()
    nats_server.restart()
    async with asyncio.timeout(10):
        await ending
    assert (await reply_log.read()).ids == [1, 2]


async def test_an_end_stored_before_the_server_died_is_not_stored_twice(
    reply_log: ReplyLog, broker: Broker, nats_server: NatsServer
) -> None:
    """The dedupe table is rebuilt from the store, so the second try of a lost ack finds the first."""
    fence = await fence_of(reply_log)
    first = await reply_log.end(make_finished(fence, (1,)))
    epoch = broker.epoch
    nats_server.kill()
    nats_server.restart()
    await until(lambda: broker.epoch > epoch)
    assert await reply_log.end(make_finished(fence, (1,))) == first


async def test_a_claim_outlasts_a_restart(
    reply_log: ReplyLog, broker: Broker, nats_server: NatsServer
) -> None:
    old = await fence_of(reply_log)
    assert await reply_log.send_tokens_confirmed(make_tokens(old, 0, 1, 2), 5)
    nats_server.kill()
    await until(lambda: not broker.connected)
    claiming = asyncio.create_task(reply_log.claim(make_started("w-2")))
    nats_server.restart()
    async with asyncio.timeout(10):
        claim = await claiming
    assert claim.fence is not None
    assert claim.history.ids == [1, 2]
    assert (await reply_log.read()).attempts == 2


async def test_undecodable_messages_are_skipped(broker: Broker, reply_log: ReplyLog) -> None:
    fence = await fence_of(reply_log)
    await jetstream.publish(broker, reply_log.tokens_subject, b"\xc1 no such message")
    await reply_log.end(make_finished(fence, (4,)))
    assert (await reply_log.read()).ids == [4]


async def test_racing_claims_leave_one_writer(broker: Broker, reply_log: ReplyLog) -> None:
    claims = await asyncio.gather(*(reply_log.claim(make_started(f"w-{n}")) for n in range(4)))
    fences = [claim.fence for claim in claims if claim.fence is not None]
    last = max(fences)
    for fence in fences:
        if fence != last:
            with pytest.raises(FenceLost):
                await reply_log.end(make_finished(fence, (1,)))
    await reply_log.end(make_finished(last, (2,)))
    assert (await reply_log.read()).ids == [2]


async def test_a_log_that_parted_from_its_leader_is_continued_whole(reply_log: ReplyLog) -> None:
    joined = await reply_log.share(Joined(leader=new_response_id()), behind=0)
    assert joined is not None
    assert await reply_log.share(Joined(leader=new_response_id()), behind=0) is None
    assert await reply_log.share(Parted(ids=(1, 2)), behind=joined) is not None
    assert await reply_log.share(Closed(reason="completed", ids=(9,)), behind=joined) is None
    first = await reply_log.claim(make_started("w-1"))
    assert first.history.ids == [1, 2]
    assert first.fence is not None
    await reply_log.send_tokens(make_tokens(first.fence, 2, 3))
    await asyncio.sleep(1.0)  # so that a quick look at the newest tokens does not see those
    assert await reply_log.send_tokens_confirmed(make_tokens(first.fence, 3, 4), 5)
    second = await reply_log.claim(make_started("w-2"), redelivered=True)
    assert second.history.ids == [1, 2, 3, 4]
