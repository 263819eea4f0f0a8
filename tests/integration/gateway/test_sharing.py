"""Answers shared by identical requests: found in the cache, or generated once for all who ask at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker import jetstream, subjects
from broker.cache import connect_redis
from broker.jobs import find_job, publish_job
from broker.metrics import CACHE_LOOKUPS, CACHE_STORES, TOKENS_UNREAD
from broker.replylog import ReplyLog
from gateway.generation import Generation
from gateway.live import Live
from schemas import codec
from schemas.config import Cache, Config, Gateway, Sim
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ResponseId, TenantId, new_response_id
from schemas.reply import Closed, Finished, Started
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import TENANT, Edge, ask, configured, edge, finish, until, worker

SLOW = Sim(inter_token_ms=10, prefill_base_ms=1, prefill_us_per_token=1, mean_output_tokens=0)
GRACE_S = 0.6


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def config(shared_nats_server: NatsServer, redis_server: RedisServer) -> Config:
    limits = Gateway(disconnect_grace_s=GRACE_S, drain_s=10)
    config = configured(shared_nats_server, redis_server, gateway=limits, sim=SLOW, cache=Cache())
    # Gateways, worker and a thousand clients share one loop: nobody is away because it is busy.
    patient = {
        "redis": replace(config.redis, timeout_s=10),
        "worker": replace(config.worker, presence_interval_s=10),
    }
    return replace(config, **patient)


@pytest.fixture
async def two(config: Config, tmp_path: Path) -> AsyncIterator[tuple[Edge, Edge]]:
    async with edge(config, tmp_path) as one, edge(config, tmp_path) as other, worker(config):
        await until(lambda: one.pipeline.ready()[0] and other.pipeline.ready()[0])
        yield one, other


def found(live: Live) -> str:
    return live.job.presentation.cache


def lookups(result: str) -> float:
    return CACHE_LOOKUPS.labels(model="headrace-sim", result=result)._value.get()


async def starts(here: Edge, responses: list[ResponseId]) -> int:
    """How many writers these responses had."""
    count = 0
    for response in responses:
        filter_ = subjects.replies_of_response(response)
        async for item in jetstream.messages(here.broker, subjects.REPLIES, filter_):
            if item.subject.endswith(".f"):
                count += isinstance(codec.decode_fence_message(item.data), Started)
    return count


async def terminals(here: Edge, response: ResponseId) -> list[object]:
    filter_ = subjects.replies_of_response(response)
    found: list[object] = []
    async for item in jetstream.messages(here.broker, subjects.REPLIES, filter_):
        fences = item.subject.endswith(".f")
        message = (codec.decode_fence_message if fences else codec.decode_token_message)(item.data)
        if isinstance(message, Closed | Finished):
            found.append(message)
    return found


async def leader_of(here: Edge, live: Live) -> ResponseId | None:
    log = ReplyLog(here.broker, live.job.gateway, live.response_id, live.job.session)
    return (await log.read()).leader


# -- the cache ------------------------------------------------------------------------------------------


async def test_the_second_is_a_hit_on_any_gateway_and_a_response_like_any_other(
    two: tuple[Edge, Edge],
) -> None:
    one, other = two
    first = await one.pipeline.submit(ask("once", max_tokens=30))
    text, end = await finish(first)
    assert found(first) == "miss"
    await one.remembered()
    hits, unread = lookups("hit"), TOKENS_UNREAD.labels(model="headrace-sim")._value
    not_read = unread.get()
    second = await other.pipeline.submit(ask("once", max_tokens=30))
    assert found(second) == "hit"
    assert second.end is not None  # at once
    assert await finish(second) == (text, second.end)
    assert second.response_id != first.response_id
    assert (second.end.outcome, second.end.reason, second.end.total) == ("incomplete", "length", 30)
    assert second.end.usage.cached_tokens == second.end.usage.prompt_tokens == end.usage.prompt_tokens
    assert second.end.timings is None
    assert second.end.ttft_ms is not None
    assert 0 < second.end.parts.edge_ms <= second.end.ttft_ms <= second.end.total_ms
    assert lookups("hit") == hits + 1
    assert unread.get() == not_read  # its client has all of it, though it came after the end
    async with edge(one.config, one.folder) as third:  # from what is stored alone
        await until(lambda: third.pipeline.ready()[0])
        kept = await third.pipeline.attach(second.response_id, TENANT)
        again, kept_end = await finish(kept)
        assert (again, kept_end.usage, found(kept)) == (text, second.end.usage, "hit")
    assert await starts(one, [second.response_id]) == 0
    assert len(await terminals(one, second.response_id)) == 1


async def test_a_hit_in_a_conversation_is_a_turn(two: tuple[Edge, Edge]) -> None:
    one, other = two
    await finish(await one.pipeline.submit(ask("hello", max_tokens=8)))
    await one.remembered()
    turn = await other.pipeline.submit(ask("hello", max_tokens=8, conversation="c"))
    assert found(turn) == "hit"
    await other.remembered()
    following = await one.pipeline.submit(ask("and then", max_tokens=3, conversation="c"))
    before = (*turn.job.prompt_ids, *turn.ids)
    assert following.job.prompt_ids[: len(before)] == before
    await finish(following)


async def test_a_stop_string_ends_a_hit_where_it_ended_the_first(two: tuple[Edge, Edge]) -> None:
    one, other = two
    whole, _ = await finish(await one.pipeline.submit(ask("words", max_tokens=60)))
    stop = whole[len(whole) // 2 :][:9]
    first, first_end = await finish(await one.pipeline.submit(ask("words", max_tokens=60, stop=[stop])))
    await one.remembered()
    live = await other.pipeline.submit(ask("words", max_tokens=60, stop=[stop]))
    text, end = await finish(live)
    assert found(live) == "hit"
    assert text == first == whole[: whole.index(stop)]
    assert (end.outcome, end.total, end.reason) == (first_end.outcome, first_end.total, "stop")


async def test_who_may_not_share_does_not(two: tuple[Edge, Edge]) -> None:
    one, other = two
    await finish(await one.pipeline.submit(ask("mine", max_tokens=5)))
    await finish(await one.pipeline.submit(ask("warm", max_tokens=5, temperature=1.0)))
    await one.remembered()
    for generation, status in (
        (ask("mine", max_tokens=5, tenant=TenantId("another")), "miss"),
        (replace(ask("mine", max_tokens=5), cache="off"), "none"),
        (ask("mine", max_tokens=5, logprobs=1), "none"),
        (ask("mine", max_tokens=6), "miss"),
        (ask("warm", max_tokens=5, temperature=1.0), "none"),
        (replace(ask("warm", max_tokens=5, temperature=1.0), cache="on"), "miss"),
    ):
        live = await other.pipeline.submit(generation)
        await finish(live)
        assert found(live) == status
    await other.remembered()
    warm = await one.pipeline.submit(replace(ask("warm", max_tokens=5, temperature=1.0), cache="on"))
    assert found(warm) == "hit"


async def test_a_keyed_hit_is_repeated_as_itself(two: tuple[Edge, Edge]) -> None:
    one, other = two
    await finish(await one.pipeline.submit(ask("keyed", max_tokens=5)))
    await one.remembered()
    request = replace(ask("keyed", max_tokens=5), idempotency_key="k")
    lives = await asyncio.gather(*(here.pipeline.submit(request) for here in (one, other, one)))
    assert len({live.response_id for live in lives}) == 1
    assert {found(live) for live in lives} == {"hit"}
    assert len({(await finish(live))[0] for live in lives}) == 1
    assert len(await terminals(one, lives[0].response_id)) == 1


async def test_time_to_live_and_sizes(config: Config, tmp_path: Path) -> None:
    small = Cache(ttl_s=600, max_entry_bytes=200, max_tenant_bytes=400)
    config = replace(config, cache=small, sim=Sim(inter_token_ms=0, mean_output_tokens=0))
    stores = CACHE_STORES._value.get()
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])

        async def status(text: str, max_tokens: int = 40) -> str:
            live = await here.pipeline.submit(ask(text, max_tokens=max_tokens))
            await finish(live)
            await here.remembered()
            return found(live)

        assert [await status("too long", 200) for _ in range(2)] == ["miss", "miss"]
        for n in range(6):
            assert await status(f"number {n}") == "miss"
        assert await status("number 5") == "hit"
        assert await status("number 0") == "miss"  # it had to go
        redis = connect_redis(config.redis)
        keys = [key async for key in redis.scan_iter("hr:cache:*")]
        answers = [key for key in keys if not key.endswith((b"index", b"total"))]
        assert 1 < len(answers) < 6
        assert sum([await redis.strlen(key) for key in answers]) <= 400
        assert not [key for key in keys if b"local" in key]
        assert [590_000 < await redis.pttl(key) <= 600_000 for key in keys] == [True] * len(keys)
        await redis.aclose()
    assert CACHE_STORES._value.get() - stores == 7


async def test_without_redis_everything_is_generated(
    config: Config, redis_server: RedisServer, two: tuple[Edge, Edge]
) -> None:
    one, other = two
    redis_server.kill()
    lives = [await here.pipeline.submit(ask("no cache", max_tokens=5)) for here in (one, other, one)]
    assert [found(live) for live in lives] == ["none"] * 3
    assert len({(await finish(live))[0] for live in lives}) == 1
    assert await starts(one, [live.response_id for live in lives]) == 3


async def test_what_a_hit_takes(two: tuple[Edge, Edge]) -> None:
    one, other = two
    await finish(await one.pipeline.submit(ask("fast", max_tokens=60)))
    await one.remembered()
    times_ms = []
    for _ in range(30):
        began_s = time.perf_counter()
        live = await other.pipeline.submit(ask("fast", max_tokens=60))
        await finish(live)
        times_ms.append((time.perf_counter() - began_s) * 1000)
        assert found(live) == "hit"
    times_ms.sort()
    print(f"\na hit, from request to its last text: p50 {times_ms[15]:.2f} ms, worst {times_ms[-1]:.2f} ms")


# -- joining --------------------------------------------------------------------------------------------


async def test_a_thousand_identical_requests_cost_one_generation(two: tuple[Edge, Edge]) -> None:
    one, other = two
    detokenizer = (await one.tokenizer()).detokenizer

    async def one_of_them(n: int) -> tuple[Live, str]:
        live = await (one, other)[n % 2].pipeline.submit(ask("all of us", max_tokens=120))
        text, end = await finish(live, limit_s=90)
        assert (end.outcome, end.total) == ("incomplete", 120)
        return live, text

    done = await asyncio.gather(*(one_of_them(n) for n in range(1000)))
    lives = [live for live, _ in done]
    assert len({live.response_id for live in lives}) == 1000
    assert {text for _, text in done} == {one.oracle(lives[0], detokenizer)}
    generated = [live for live in lives if found(live) == "miss"]
    assert len(generated) == 1
    joined = [live for live in lives if found(live) == "joined"]
    assert len(joined) > 500
    assert await starts(one, [generated[0].response_id]) == 1
    assert await starts(one, [live.response_id for live in joined[::20]]) == 0
    for live in joined[::100]:
        assert live.end is not None
        assert live.end.usage.cached_tokens == len(live.job.prompt_ids)


async def led(one: Edge, other: Edge, generation: Generation) -> tuple[Live, Live]:
    """A leader at one gateway, with some tokens, and who joined it at the other, with as many."""
    leader = await one.pipeline.submit(generation)
    await until(lambda: leader.total > 3)
    joined = await other.pipeline.submit(generation)
    assert (found(leader), found(joined)) == ("miss", "joined")
    await until(lambda: joined.total > 3)
    assert await leader_of(one, joined) == leader.response_id
    return leader, joined


async def test_a_leader_that_is_cancelled_or_left_ends_nobody_else(two: tuple[Edge, Edge]) -> None:
    one, other = two
    request = ask("lead on", max_tokens=200)
    leader, joined = await led(one, other, request)
    more = [await here.pipeline.submit(request) for here in (one, other, one)]
    reading = [asyncio.create_task(finish(live)) for live in (joined, *more)]
    await one.pipeline.cancel(leader.response_id, TENANT)
    _, end = await finish(leader)
    assert end.outcome == "cancelled"
    results = await asyncio.gather(*reading)
    assert {text for text, _ in results} == {one.oracle(joined, (await one.tokenizer()).detokenizer)}
    assert {(end.outcome, end.total) for _, end in results} == {("incomplete", 200)}
    assert await starts(one, [live.response_id for live in (joined, *more)]) == 1
    for live in (leader, joined, *more):
        assert len(await terminals(one, live.response_id)) == 1


async def test_a_leader_whose_client_leaves_goes_on_for_who_joined(two: tuple[Edge, Edge]) -> None:
    one, other = two
    leader, joined = await led(one, other, ask("left alone", max_tokens=250))  # many grace times
    _, end = await finish(joined)
    assert (end.outcome, end.total) == ("incomplete", 250)
    await until(lambda: leader.end is not None)
    assert leader.end is not None
    assert leader.end.outcome == "incomplete"
    assert await starts(one, [joined.response_id]) == 0


async def test_a_cancel_ends_only_who_asked(two: tuple[Edge, Edge]) -> None:
    one, other = two
    leader, joined = await led(one, other, ask("not me", max_tokens=150))
    reading = asyncio.create_task(finish(leader))
    await one.pipeline.cancel(joined.response_id, TENANT)  # from another gateway than its own
    _, end = await finish(joined)
    assert end.outcome == "cancelled"
    assert 0 < end.total < 150
    (closed,) = await terminals(one, joined.response_id)
    assert isinstance(closed, Closed)
    assert list(closed.ids or ()) == leader.ids[: end.total]
    text, end = await reading
    assert (end.outcome, text) == ("incomplete", one.oracle(leader, (await one.tokenizer()).detokenizer))


async def test_one_that_joined_is_followed_at_any_gateway(two: tuple[Edge, Edge]) -> None:
    one, other = two
    leader, joined = await led(one, other, ask("resume me", max_tokens=120))
    with pytest.raises(HeadraceError, match="response_not_found"):
        await one.pipeline.attach(joined.response_id, TenantId("another"))
    resumed = await one.pipeline.attach(joined.response_id, TENANT)
    (text, end), (own, own_end), (led_text, _) = await asyncio.gather(
        finish(resumed), finish(joined), finish(leader)
    )
    assert text == own == led_text
    assert (end.outcome, end.total, end.usage) == (own_end.outcome, own_end.total, own_end.usage)


async def test_the_gateways_of_leader_and_joined_die(config: Config, tmp_path: Path) -> None:
    async with edge(config, tmp_path) as other, worker(config):
        async with edge(config, tmp_path) as one, edge(config, tmp_path) as third:
            await until(lambda: all(here.pipeline.ready()[0] for here in (one, other, third)))
            _, joined = await led(one, other, ask("survive", max_tokens=150))
            again = await third.pipeline.submit(ask("survive", max_tokens=150))
            assert found(again) == "joined"
        # the leader's gateway is gone, and that of one that joined
        resumed = await other.pipeline.attach(again.response_id, TENANT)
        (text, end), (other_text, _) = await asyncio.gather(finish(joined), finish(resumed))
        assert text == other_text == other.oracle(joined, (await other.tokenizer()).detokenizer)
        assert (end.outcome, end.total) == ("incomplete", 150)


async def test_a_job_that_was_held_and_says_nothing_is_run_by_who_finds_it(
    config: Config, two: tuple[Edge, Edge]
) -> None:
    """Its gateway died between the job and the first message of its log."""
    one, other = two
    done = await one.pipeline.submit(replace(ask("found", max_tokens=20), cache="off"))
    text, _ = await finish(done)
    job = replace(done.job, response=new_response_id(), gateway=GatewayId("gw-dead"), held=True)
    await publish_job(one.broker, job)
    live = await other.pipeline.attach(job.response, TENANT)
    assert (await finish(live))[0] == text
    stored = await find_job(one.broker, job.response)
    assert stored is not None
    assert await starts(one, [job.response]) == 1


async def test_a_joined_turn_of_a_dead_gateway_is_remembered(config: Config, tmp_path: Path) -> None:
    async with edge(config, tmp_path) as one, worker(config):
        async with edge(config, tmp_path) as doomed:
            await until(lambda: one.pipeline.ready()[0] and doomed.pipeline.ready()[0])
            leader = await one.pipeline.submit(ask("my turn", max_tokens=80))
            reading = asyncio.create_task(finish(leader))
            turn = await doomed.pipeline.submit(ask("my turn", max_tokens=80, conversation="c"))
            assert found(turn) == "joined"
        await reading
        async with asyncio.timeout(20):
            while True:
                try:
                    following = await one.pipeline.submit(ask("next", max_tokens=3, conversation="c"))
                    break
                except HeadraceError as error:
                    if error.code != "conversation_busy":
                        raise
                    await asyncio.sleep(0.05)
        before = (*turn.job.prompt_ids, *leader.ids)
        assert following.job.prompt_ids[: len(before)] == before
        await finish(following)


async def test_a_leader_that_fails_by_its_request_fails_all(two: tuple[Edge, Edge]) -> None:
    one, other = two
    leader, joined = await led(one, other, ask("fail", max_tokens=3000))
    log = ReplyLog(one.broker, leader.job.gateway, leader.response_id, leader.job.session)
    await log.close(Closed(reason="refused", code="poison", message="It ended several workers."))
    for live in (leader, joined):
        _, end = await finish(live)
        assert (end.outcome, end.code) == ("failed", "poison")
    assert await starts(one, [joined.response_id]) == 0


async def test_a_leader_of_less_time_leaves_the_rest_to_another(two: tuple[Edge, Edge]) -> None:
    one, other = two
    leader = await one.pipeline.submit(ask("late", max_tokens=250, deadline_s=1.0))
    await until(lambda: leader.total > 3)
    joined = await other.pipeline.submit(ask("late", max_tokens=250))
    text, end = await finish(joined)
    assert (found(joined), end.outcome, end.total) == ("joined", "incomplete", 250)
    assert text == one.oracle(joined, (await one.tokenizer()).detokenizer)
    _, end = await finish(leader)
    assert end.code == "deadline_exceeded"


async def test_redis_goes_while_a_leader_is_cancelled(
    two: tuple[Edge, Edge], redis_server: RedisServer
) -> None:
    one, other = two
    leader, joined = await led(one, other, ask("on my own", max_tokens=150))
    redis_server.kill()
    await one.pipeline.cancel(leader.response_id, TENANT)
    text, end = await finish(joined)
    assert (end.outcome, end.total) == ("incomplete", 150)
    assert text == one.oracle(joined, (await one.tokenizer()).detokenizer)


async def test_joining_can_be_turned_off(config: Config, tmp_path: Path) -> None:
    config = replace(config, cache=Cache(join=False))
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        lives = await asyncio.gather(*(here.pipeline.submit(ask("each", max_tokens=20)) for _ in range(3)))
        assert [found(live) for live in lives] == ["miss"] * 3
        assert len({(await finish(live))[0] for live in lives}) == 1
        await here.remembered()
        assert found(await here.pipeline.submit(ask("each", max_tokens=20))) == "hit"
