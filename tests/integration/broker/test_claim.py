"""Claiming a response that somebody has written before: by its newest messages, as by all of them."""

from __future__ import annotations

import pytest

from broker import jetstream, replylog
from broker.connection import Broker
from broker.replylog import ReplyLog
from schemas.ids import Fence, new_response_id
from schemas.reply import Closed, Tokens
from tests.integration.broker.samples import GATEWAY, SESSION, make_finished, make_started, make_tokens


@pytest.fixture
def reply_log(broker: Broker) -> ReplyLog:
    return ReplyLog(broker, GATEWAY, new_response_id(), SESSION)


@pytest.fixture
def _only_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replylog, "LOOK_BACK_MS", 0)


async def write(log: ReplyLog, count: int, *, repeat_every: int, redelivered: bool = False) -> Fence:
    """One attempt: the tokens 0, 1, … one a message, and at times all of them."""
    claim = await log.claim(make_started(), redelivered=redelivered)
    assert claim.fence is not None
    first = len(claim.history.ids)
    for n in range(first, first + count):
        start = 0 if (n - first) % repeat_every == repeat_every - 1 else n
        tokens = Tokens(fence=claim.fence, offset=start, ids=tuple(range(start, n + 1)))
        assert await log.send_tokens_confirmed(tokens, 5)
    return claim.fence


@pytest.mark.usefixtures("_only_the_last_moment")
@pytest.mark.parametrize("repeat_every", [1, 4, 1000])
async def test_the_newest_messages_tell_the_same(reply_log: ReplyLog, repeat_every: int) -> None:
    """With a repetition among them, and without one (then all are read)."""
    await write(reply_log, 40, repeat_every=repeat_every)
    fence = await write(reply_log, 24, repeat_every=repeat_every, redelivered=True)
    await reply_log.send_tokens(make_tokens(Fence(fence - 1), 64, 99))  # of one who has been replaced
    everything = await reply_log.read()
    claim = await reply_log.claim(make_started("w-3"), redelivered=True)
    assert claim.fence is not None
    assert claim.history.ids == everything.ids == list(range(64))
    assert claim.history.attempts == everything.attempts == 2
    assert claim.history.fences == everything.fences
    assert claim.history.barren_fences == everything.barren_fences == 0


@pytest.mark.usefixtures("_only_the_last_moment")
async def test_attempts_without_a_token_are_counted_behind_the_newest(reply_log: ReplyLog) -> None:
    await write(reply_log, 8, repeat_every=4)
    for _ in range(2):
        assert (await reply_log.claim(make_started(), redelivered=True)).fence is not None
    claim = await reply_log.claim(make_started(), redelivered=True)
    assert (claim.history.barren_fences, claim.history.fences) == (2, 3)
    assert (await reply_log.claim(make_started(), redelivered=True)).fence is None  # poison


@pytest.mark.usefixtures("_only_the_last_moment")
@pytest.mark.parametrize("late_tokens", [0, 8])
async def test_an_end_is_seen_even_behind_tokens_of_one_who_was_replaced(
    reply_log: ReplyLog, late_tokens: int
) -> None:
    old = await write(reply_log, 4, repeat_every=4)
    fence = await write(reply_log, 4, repeat_every=4, redelivered=True)
    await reply_log.end(make_finished(fence, tuple(range(8))))
    for n in range(late_tokens):
        await reply_log.send_tokens_confirmed(Tokens(fence=old, offset=0, ids=(n,) * 9), 5)
    claim = await reply_log.claim(make_started(), redelivered=True)
    assert claim.fence is None
    assert claim.history.end is not None
    assert claim.history.ids == list(range(8))


async def test_a_closing_before_any_token_is_seen(reply_log: ReplyLog) -> None:
    await reply_log.close(Closed(reason="cancelled", code="cancelled"))
    claim = await reply_log.claim(make_started(), redelivered=True)
    assert claim.fence is None
    assert claim.history.end is not None


async def test_redelivered_and_nothing_was_written(reply_log: ReplyLog) -> None:
    claim = await reply_log.claim(make_started(), redelivered=True)
    assert claim.fence is not None
    assert claim.history.attempts == 0


async def test_a_hand_off_is_no_failed_attempt(reply_log: ReplyLog) -> None:
    fence = await write(reply_log, 4, repeat_every=4)
    assert await reply_log.hand_off(fence)
    claim = await reply_log.claim(make_started(), redelivered=True)
    assert (claim.history.fences, claim.history.handed_off) == (1, True)


async def test_who_may_not_start_writes_nothing(broker: Broker, reply_log: ReplyLog) -> None:
    await write(reply_log, 4, repeat_every=4)
    before = [item.seq async for item in jetstream.messages(broker, "REPLIES", "hr.reply.>")]
    claim = await reply_log.claim(make_started(), redelivered=True, may_start=lambda history: not history.ids)
    assert claim.held_back
    assert claim.fence is None
    assert [item.seq async for item in jetstream.messages(broker, "REPLIES", "hr.reply.>")] == before
    claim = await reply_log.claim(make_started(), may_start=lambda history: not history.ids)
    assert claim.held_back  # found out by the refusal
