"""The pipeline on a real broker, a real cache and a simulated worker: text, ends, limits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.jobs import find_job
from broker.metrics import exposition
from broker.replylog import ReplyLog
from schemas.config import Gateway, Sim
from schemas.errors import HeadraceError
from schemas.ids import TenantId, new_response_id
from schemas.reply import Closed
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.edge import TENANT, Edge, ask, configured, edge, finish, until, worker

SLOW = Sim(inter_token_ms=20, prefill_base_ms=1, mean_output_tokens=0)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
async def serving(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> AsyncIterator[Edge]:
    config = configured(shared_nats_server, shared_redis_server)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        yield here


@pytest.fixture
async def serving_slowly(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> AsyncIterator[Edge]:
    limits = Gateway(disconnect_grace_s=0.3)
    config = configured(shared_nats_server, shared_redis_server, sim=SLOW, gateway=limits)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        yield here


async def test_many_at_once_equal_the_oracle(serving: Edge) -> None:
    detokenizer = (await serving.tokenizer()).detokenizer
    lives = await asyncio.gather(
        *(serving.pipeline.submit(ask(f"Question {n}: 你好?", min_tokens=5)) for n in range(40))
    )
    for live, (text, end) in zip(lives, await asyncio.gather(*map(finish, lives)), strict=True):
        assert text == live.text == serving.oracle(live, detokenizer)
        assert end.outcome == ("completed" if end.total < 400 else "incomplete")
        assert end.usage.prompt_tokens == len(live.job.prompt_ids)
        assert end.usage.completion_tokens == end.total == len(live.ids)
        assert end.ttft_ms is not None
        assert 0 < end.edge_ms <= end.ttft_ms <= end.total_ms
    assert lives[0].job.session != lives[1].job.session


async def test_no_engine_library_is_imported(serving: Edge) -> None:
    await finish(await serving.pipeline.submit(ask("hello", max_tokens=3)))
    code = "import gateway.pipeline, sys; print(sorted({'torch','vllm','transformers'} & set(sys.modules)))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode().strip() == "[]"


async def test_stop_string_closes_the_log_and_counts(serving: Edge) -> None:
    detokenizer = (await serving.tokenizer()).detokenizer
    whole, _ = await finish(await serving.pipeline.submit(ask("stop here", ignore_eos=True)))
    middle = whole[len(whole) // 2 : len(whole) // 2 + 7]
    cut = whole.index(middle)
    live = await serving.pipeline.submit(ask("stop here", stop=[middle], ignore_eos=True))
    text, end = await finish(live)
    assert text == whole[:cut]
    assert (end.outcome, end.reason) == ("completed", "stop")
    assert middle in detokenizer.decode(live.ids)
    assert middle not in detokenizer.decode(live.ids[:-1])
    log = ReplyLog(serving.broker, live.job.gateway, live.response_id, live.job.session)
    await serving.pipeline.drain()
    stored = (await log.read()).end
    assert stored is not None
    assert isinstance(stored.message, Closed)
    assert (stored.message.reason, stored.message.total) == ("stop", end.total)


async def test_cancel_while_running(serving_slowly: Edge) -> None:
    live = await serving_slowly.pipeline.submit(ask("go on and on"))
    task = asyncio.create_task(finish(live))
    await until(lambda: live.total > 3)
    with pytest.raises(HeadraceError, match="response_not_found"):
        await serving_slowly.pipeline.cancel(live.response_id, TenantId("another"))
    await serving_slowly.pipeline.cancel(live.response_id, TENANT)
    text, end = await task
    assert (end.outcome, end.reason) == ("cancelled", "cancelled")
    assert 3 < end.total < 400
    assert text == (await serving_slowly.tokenizer()).detokenizer.decode(live.ids)
    await serving_slowly.pipeline.cancel(live.response_id, TENANT)  # ended: no effect
    assert serving_slowly.pipeline.find(live.response_id, TENANT) is live
    assert serving_slowly.pipeline.find(live.response_id, TenantId("another")) is None


async def test_cancel_of_what_was_never_here(serving: Edge) -> None:
    with pytest.raises(HeadraceError, match="response_not_found"):
        await serving.pipeline.cancel(new_response_id(), TENANT)


async def test_cancel_while_queued(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> None:
    sim = Sim(name="one-slot", slots=1, inter_token_ms=20, mean_output_tokens=0)
    config = configured(shared_nats_server, shared_redis_server, sim=sim)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        first = await here.pipeline.submit(ask("first", model="one-slot", max_tokens=2000))
        await until(lambda: first.total > 0)
        second = await here.pipeline.submit(ask("second", model="one-slot"))
        await here.pipeline.cancel(second.response_id, TENANT)
        text, end = await finish(second)
        assert (text, end.outcome, end.total, second.started) == ("", "cancelled", 0, False)
        assert first.end is None
        await here.pipeline.cancel(first.response_id, TENANT)
        assert (await finish(first))[1].outcome == "cancelled"


async def test_deadline_without_any_worker_slot(serving_slowly: Edge) -> None:
    live = await serving_slowly.pipeline.submit(ask("too long", deadline_s=0.5, max_tokens=2000))
    _, end = await finish(live)
    assert (end.outcome, end.code) == ("failed", "deadline_exceeded")
    assert 450 < end.total_ms < 3000


async def test_nobody_reads_for_the_grace_time(serving_slowly: Edge) -> None:
    live = await serving_slowly.pipeline.submit(ask("are you there", max_tokens=2000))
    reader = live.reader()
    await reader.next()
    reader.close()
    again = live.reader()  # back in time
    await until(lambda: live.total > 25)  # 0.5 s of tokens: longer than the grace time
    assert live.end is None
    again.close()
    await until(lambda: live.end is not None, limit_s=5)
    assert live.end is not None
    assert live.end.outcome == "cancelled"


async def test_refusals(serving: Edge) -> None:
    submit = serving.pipeline.submit
    with pytest.raises(HeadraceError, match="'headrace-sim'") as refused:
        await submit(ask("x", model="gpt-9"))
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(HeadraceError, match=r"(?s)32768.*shorten") as refused:
        await submit(ask("word " * 33_000))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(HeadraceError, match="context_length_exceeded"):
        await submit(ask("x", max_tokens=32_768))
    live = await submit(ask("x", model="headrace-sim", max_tokens=2))
    assert (await finish(live))[1].reason == "length"
    assert b'outcome="refused"' in exposition("text/plain")[0]


async def test_no_worker_is_not_an_unknown_model(
    nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> None:
    config = configured(nats_server, shared_redis_server)
    async with edge(config, tmp_path) as here:
        await until(lambda: here.pipeline.ready()[1] == "no worker is ready")
        with pytest.raises(HeadraceError, match="no_worker"):
            await here.pipeline.submit(ask("x"))
        async with worker(config):
            await until(lambda: here.pipeline.ready()[0])
        await until(lambda: not here.pipeline.models())
        with pytest.raises(HeadraceError, match="no_worker"):
            await here.pipeline.submit(ask("x", model="headrace-sim"))
        with pytest.raises(HeadraceError, match="model_not_found"):
            await here.pipeline.submit(ask("x", model="other"))


async def test_bound_of_responses_and_drain(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> None:
    limits = Gateway(max_responses=2, drain_s=10)
    config = configured(shared_nats_server, shared_redis_server, gateway=limits, sim=SLOW)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        lives = [await here.pipeline.submit(ask(str(n), max_tokens=30)) for n in range(2)]
        with pytest.raises(HeadraceError, match="queue_full"):
            await here.pipeline.submit(ask("third"))
        readers = [asyncio.create_task(finish(live)) for live in lives]
        await here.pipeline.drain()
        assert all(live.end is not None for live in lives)
        await asyncio.gather(*readers)
        with pytest.raises(HeadraceError, match="going_away"):
            await here.pipeline.submit(ask("late"))


async def test_broker_killed_and_back_in_mid_stream(
    nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> None:
    config = configured(nats_server, shared_redis_server, sim=SLOW)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        detokenizer = (await here.tokenizer()).detokenizer
        live = await here.pipeline.submit(ask("survive", max_tokens=100))
        task = asyncio.create_task(finish(live, limit_s=60))
        await until(lambda: live.total > 10)
        nats_server.kill()
        await until(lambda: not here.broker.connected)
        with pytest.raises(HeadraceError, match="broker_unavailable"):
            await here.pipeline.submit(ask("while it is away"))
        assert not here.pipeline.ready()[0]
        nats_server.restart()
        text, end = await task
        assert text == here.oracle(live, detokenizer)
        assert (end.total, end.reason) == (100, "length")


async def test_job_can_be_shown_by_any_gateway(serving: Edge) -> None:
    live = await serving.pipeline.submit(ask("hello", system="Be brief.", conversation="c", stop=["zzz"]))
    await finish(live)
    job = await find_job(serving.broker, live.response_id)
    assert job == live.job
    shown = live.job.presentation
    assert shown.input == (("system", "Be brief."), ("user", "hello"))
    assert (shown.conversation, shown.stop) == ("c", ("zzz",))
