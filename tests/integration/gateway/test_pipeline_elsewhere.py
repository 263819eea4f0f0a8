"""Responses of another gateway: read, followed, stopped and cancelled where their clients are now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace
from nats.aio.msg import Msg

from broker import metrics, subjects
from broker.jobs import find_job, publish_job
from broker.replylog import ReplyLog
from gateway.acceptance import NotFirst, accept
from gateway.generation import Generation
from gateway.live import Live
from schemas.config import Config, Gateway, Sim
from schemas.errors import HeadraceError
from schemas.ids import TenantId
from tests.chaos.proxy import Proxy
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import TENANT, Edge, ask, configured, edge, finish, until, worker

SLOW = Sim(inter_token_ms=10, prefill_base_ms=1, mean_output_tokens=0)
GRACE_S = 0.6


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def config(shared_nats_server: NatsServer, shared_redis_server: RedisServer) -> Config:
    limits = Gateway(disconnect_grace_s=GRACE_S, drain_s=10)
    return configured(shared_nats_server, shared_redis_server, gateway=limits, sim=SLOW)


@pytest.fixture
async def two(config: Config, tmp_path: Path) -> AsyncIterator[tuple[Edge, Edge]]:
    async with edge(config, tmp_path) as one, edge(config, tmp_path) as other, worker(config):
        await until(lambda: one.pipeline.ready()[0] and other.pipeline.ready()[0])
        yield one, other


def keyed(generation: Generation, key: str) -> Generation:
    return replace(generation, idempotency_key=key)


async def text_and_end(live: Live) -> tuple[str, str]:
    text, end = await finish(live)
    return text, end.outcome


async def test_the_same_text_on_every_gateway_and_after_the_first_has_died(
    config: Config, tmp_path: Path
) -> None:
    async with edge(config, tmp_path) as other, worker(config):
        async with edge(config, tmp_path) as first:
            await until(lambda: first.pipeline.ready()[0] and other.pipeline.ready()[0])
            live = await first.pipeline.submit(ask("go on", max_tokens=150))
            reader = live.reader()
            await until(lambda: live.total > 20)
            followed = await other.pipeline.attach(live.response_id, TENANT)
            assert followed.total >= 20
            with pytest.raises(HeadraceError, match="response_not_found"):
                await other.pipeline.attach(live.response_id, TenantId("another"))
            reading = asyncio.create_task(text_and_end(followed))
            await asyncio.sleep(0)
            reader.close()
        # its gateway is gone
        text, outcome = await reading
        assert outcome == "incomplete"
        assert text == other.oracle(followed, (await other.tokenizer()).detokenizer)
        again = await other.pipeline.attach(live.response_id, TENANT)
        assert await text_and_end(again) == (text, outcome)
        async with edge(config, tmp_path) as third:  # long after: from the log alone
            await until(lambda: third.pipeline.ready()[0])
            kept = await third.pipeline.attach(live.response_id, TENANT)
            assert kept.end is not None
            assert await text_and_end(kept) == (text, outcome)
            assert again.end is not None
            assert (kept.end.usage, kept.end.parts) == (again.end.usage, again.end.parts)


async def test_attached_before_its_first_token(config: Config, tmp_path: Path) -> None:
    slow = replace(config, sim=Sim(prefill_base_ms=1500, inter_token_ms=1))
    async with edge(slow, tmp_path) as one, edge(slow, tmp_path) as other, worker(slow):
        await until(lambda: one.pipeline.ready()[0] and other.pipeline.ready()[0])
        live = await one.pipeline.submit(ask("hello", max_tokens=20))
        followed = await other.pipeline.attach(live.response_id, TENANT)
        assert followed.total == 0
        assert await text_and_end(followed) == await text_and_end(live)


async def test_a_client_that_moved_is_not_cancelled_and_one_that_left_is(
    two: tuple[Edge, Edge],
) -> None:
    one, other = two
    unread = metrics.TOKENS_UNREAD.labels(model="headrace-sim")._value
    before = unread.get()
    moved = await one.pipeline.submit(ask("moved", max_tokens=400))
    left = await one.pipeline.submit(ask("left", max_tokens=4000))
    for live in (moved, left):
        reader = live.reader()
        await reader.next()
        reader.close()
    followed = await other.pipeline.attach(moved.response_id, TENANT)
    text, end = await finish(followed)  # takes four seconds, many grace times
    assert (end.outcome, end.total) == ("incomplete", 400)
    assert text == other.oracle(followed, (await other.tokenizer()).detokenizer)
    await until(lambda: left.end is not None)
    assert left.end is not None
    assert left.end.outcome == "cancelled"
    assert left.end.total < 400
    assert unread.get() - before == len(left.log.ids) - left.read_tokens > 0


async def test_a_gateway_whose_link_is_dead_takes_nobody_for_gone(config: Config, tmp_path: Path) -> None:
    """What the others say of the client is on its way: the cancel would overtake it."""
    link = Proxy(urlsplit(config.nats.url).port or 0)
    await link.start()
    linked = replace(config.nats, url=f"nats://127.0.0.1:{link.port}")
    behind = replace(config, nats=linked)
    async with edge(behind, tmp_path) as one, edge(config, tmp_path) as other, worker(config):
        await until(lambda: one.pipeline.ready()[0] and other.pipeline.ready()[0])
        live = await one.pipeline.submit(ask("go on", max_tokens=600))
        reader = live.reader()
        await reader.next()
        followed = await other.pipeline.attach(live.response_id, TENANT)
        reading = followed.reader()
        link.blackhole()
        reader.close()
        await asyncio.sleep(4 * GRACE_S)
        link.heal()
        shown = await text_and_end(followed)
        assert shown == await text_and_end(live)
        assert shown[1] == "incomplete"
        reading.close()
    await link.close()


async def test_one_that_moved_and_then_left_is_cancelled(two: tuple[Edge, Edge]) -> None:
    one, other = two
    live = await one.pipeline.submit(ask("on and on", max_tokens=30_000))
    reader = live.reader()
    followed = await other.pipeline.attach(live.response_id, TENANT)
    reader.close()
    reader = followed.reader()
    await asyncio.sleep(2 * GRACE_S)
    assert followed.end is None
    reader.close()
    await until(lambda: live.end is not None and followed.end is not None)
    assert live.end is not None
    assert live.end.outcome == "cancelled"


async def test_looking_at_it_does_not_cancel_it(two: tuple[Edge, Edge]) -> None:
    one, other = two
    live = await one.pipeline.submit(ask("on and on", max_tokens=300))
    reading = asyncio.create_task(text_and_end(live))
    await until(lambda: live.total > 5)
    looked_at = await other.pipeline.attach(live.response_id, TENANT)
    assert looked_at.total >= 5
    assert (await reading)[1] == "incomplete"


async def test_a_stop_string_and_a_cancel_elsewhere(two: tuple[Edge, Edge]) -> None:
    one, other = two
    plain = await one.pipeline.submit(ask("what words", max_tokens=200))
    text, _ = await finish(plain)
    stop = text[len(text) // 2 :][:12]
    live = await one.pipeline.submit(ask("what words", max_tokens=200, stop=[stop]))
    followed = await other.pipeline.attach(live.response_id, TENANT)
    (text_here, end_here), (text_there, end_there) = await asyncio.gather(finish(live), finish(followed))
    assert text_here == text_there == text[: text.index(stop)]
    assert (end_here.outcome, end_here.total) == (end_there.outcome, end_there.total)
    live = await one.pipeline.submit(ask("cancel me", max_tokens=3000))
    followed = await other.pipeline.attach(live.response_id, TENANT)
    reading = asyncio.create_task(finish(live))
    await until(lambda: followed.total > 3)
    await other.pipeline.cancel(live.response_id, TENANT)
    await until(lambda: followed.end is not None)
    assert (await reading)[1].outcome == "cancelled"


async def test_a_drain_does_not_wait_for_who_has_moved(two: tuple[Edge, Edge]) -> None:
    one, other = two
    live = await one.pipeline.submit(ask("on and on", max_tokens=3000))
    reader = live.reader()
    followed = await other.pipeline.attach(live.response_id, TENANT)
    reading = followed.reader()
    draining = asyncio.create_task(one.pipeline.drain())
    await until(lambda: live.elsewhere)
    reader.close()
    async with asyncio.timeout(5):
        await draining
    assert live.end is None
    await other.pipeline.cancel(live.response_id, TENANT)
    while await reading.next():
        pass
    reading.close()


async def test_a_gateway_that_was_cut_off_says_at_once_whom_it_attends(
    nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> None:
    patient = Gateway(disconnect_grace_s=3600)  # it speaks every twenty minutes
    config = configured(nats_server, shared_redis_server, gateway=patient, sim=SLOW)
    async with edge(config, tmp_path) as one, edge(config, tmp_path) as other, worker(config):
        await until(lambda: one.pipeline.ready()[0] and other.pipeline.ready()[0])
        live = await one.pipeline.submit(ask("go on", max_tokens=2000))
        reader = (await other.pipeline.attach(live.response_id, TENANT)).reader()
        heard: list[bytes] = []

        async def hear(message: Msg) -> None:
            heard.append(message.data)

        # on its own connection, which is certain to be back when it speaks
        await other.broker.nc.subscribe(subjects.attend(live.response_id), cb=hear)
        await asyncio.to_thread(nats_server.restart)
        await until(lambda: other.pipeline.gateway.encode() in heard)
        reader.close()
        await one.pipeline.cancel(live.response_id, TENANT)


async def test_a_repeated_request_is_the_first_one_on_any_gateway(two: tuple[Edge, Edge]) -> None:
    one, other = two
    request = keyed(ask("once", max_tokens=100, conversation="c"), "key-1")
    lives = await asyncio.gather(
        one.pipeline.submit(request),
        one.pipeline.submit(request),
        other.pipeline.submit(request),
    )
    assert len({live.response_id for live in lives}) == 1
    read = await asyncio.gather(*(text_and_end(live) for live in lives))
    assert len(set(read)) == 1
    later = await other.pipeline.submit(request)  # it has ended
    assert await text_and_end(later) == read[0]
    with pytest.raises(HeadraceError, match="idempotency_conflict"):
        await one.pipeline.submit(keyed(ask("another"), "key-1"))
    another = await one.pipeline.submit(keyed(ask("another", max_tokens=3), "key-2"))
    assert another.response_id != lives[0].response_id
    await finish(another)
    await one.remembered()
    await other.remembered()  # whichever of them accepted it
    following = await one.pipeline.submit(ask("and then", conversation="c", max_tokens=3))
    decoded = (await one.tokenizer()).detokenizer.decode(following.job.prompt_ids)
    assert decoded.count("once") == 1
    await finish(following)


async def test_a_repeated_turn_is_not_remembered_twice_nor_held_up_by_the_next(
    two: tuple[Edge, Edge],
) -> None:
    one, other = two
    request = keyed(ask("once", max_tokens=3, conversation="d"), "key-4")
    first = await one.pipeline.submit(request)
    read = await text_and_end(first)
    await one.remembered()
    repeated = await other.pipeline.submit(request)  # over, and the conversation is free
    assert (repeated.response_id, await text_and_end(repeated)) == (first.response_id, read)
    await other.remembered()
    following = await one.pipeline.submit(ask("and then", conversation="d", max_tokens=100))
    prompt = (await one.tokenizer()).detokenizer.decode(following.job.prompt_ids)
    assert prompt.count("once") == 1
    assert (
        following.end is None
    )  # the conversation is busy, and the repeated request is answered all the same
    assert (await other.pipeline.submit(request)).response_id == first.response_id
    await finish(following)


async def test_the_queue_knows_a_repeated_job_for_as_long_as_it_keeps_it(two: tuple[Edge, Edge]) -> None:
    one, _ = two
    live = await one.pipeline.submit(keyed(ask("hello", max_tokens=3), "key-6"))
    await finish(live)
    elsewhere = replace(live.job, priority="batch")
    stored = await publish_job(one.broker, elsewhere, msg_id="the window has passed", only_first=True)
    assert stored.duplicate


async def test_a_try_that_was_given_up_and_stored_after_all_is_not_this_one(two: tuple[Edge, Edge]) -> None:
    """Its log has messages that nobody here has read: it must be followed from its beginning."""
    one, _ = two
    live = await one.pipeline.submit(keyed(ask("late", max_tokens=3), "key-7"))
    await finish(live)
    await accept(one.broker, live.job, None)  # the same try again, as after a lost ack
    later = replace(live.job, created_unix_ms=live.job.created_unix_ms + 5000)
    with pytest.raises(NotFirst):
        await accept(one.broker, later, None)


async def test_a_key_whose_first_request_was_refused_is_free(two: tuple[Edge, Edge]) -> None:
    one, _ = two
    with pytest.raises(HeadraceError, match="model_not_found"):
        await one.pipeline.submit(keyed(ask("hello", model="nope"), "key-3"))
    live = await one.pipeline.submit(keyed(ask("hello", max_tokens=3), "key-3"))
    await finish(live)


async def test_an_overdue_response_of_a_dead_gateway_is_ended_by_who_reads_it(
    config: Config, tmp_path: Path
) -> None:
    async with edge(config, tmp_path) as other:
        async with edge(config, tmp_path) as first, worker(config):
            await until(lambda: first.pipeline.ready()[0] and other.pipeline.ready()[0])
            live = await first.pipeline.submit(ask("on and on", max_tokens=5000, deadline_s=1.5))
            live.reader()
            await until(lambda: live.total > 3)
            # no worker is left, and now no gateway either
        job = await find_job(other.broker, live.response_id)
        assert job is not None
        followed = await other.pipeline.attach(live.response_id, TENANT)
        _, end = await finish(followed)
        assert (end.outcome, end.code) == ("failed", "deadline_exceeded")
        assert (await ReplyLog(other.broker, job.gateway, job.response, job.session).read()).end is not None
