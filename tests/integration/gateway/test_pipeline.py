"""The pipeline on a real broker, a real cache and a simulated worker: text, ends, limits."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker import jetstream, subjects
from broker.connection import Broker
from broker.jobs import find_job, publish_job
from broker.metrics import exposition
from broker.replylog import ReplyLog
from gateway.live import now_ms
from schemas import codec
from schemas.config import Gateway, Sim
from schemas.errors import HeadraceError
from schemas.ids import GatewayId, ModelToken, SessionToken, TenantId, new_response_id
from schemas.job import Job, Presentation
from schemas.reply import Closed, Tokens
from schemas.sampling import Sampling
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
async def here(
    nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> AsyncIterator[Edge]:
    """Without workers, on a broker of its own."""
    async with edge(configured(nats_server, shared_redis_server), tmp_path) as found:
        await until(lambda: found.pipeline.ready()[1] == "no worker is ready")
        yield found


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
        assert 0 < end.parts.edge_ms <= end.ttft_ms <= end.total_ms
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
    found = serving_slowly.pipeline.find(live.response_id, TENANT)
    assert found is not None
    assert (found.end, found.text) == (live.end, live.text)
    assert serving_slowly.pipeline.find(live.response_id, TenantId("another")) is None


async def test_cancel_of_what_was_never_here(serving: Edge) -> None:
    with pytest.raises(HeadraceError, match="response_not_found"):
        await serving.pipeline.cancel(new_response_id(), TENANT)


async def test_cancel_through_another_gateway(serving_slowly: Edge) -> None:
    live = await serving_slowly.pipeline.submit(ask("go on and on", max_tokens=2000))
    task = asyncio.create_task(finish(live))
    await until(lambda: live.total > 3)
    async with edge(serving_slowly.config, serving_slowly.folder) as other:
        assert other.pipeline.find(live.response_id, TENANT) is None
        with pytest.raises(HeadraceError, match="response_not_found"):
            await other.pipeline.cancel(live.response_id, TenantId("another"))
        await other.pipeline.cancel(live.response_id, TENANT)
        _, end = await task
        assert end.outcome == "cancelled"
        await other.pipeline.cancel(live.response_id, TENANT)  # ended: no effect
    log = ReplyLog(serving_slowly.broker, live.job.gateway, live.response_id, live.job.session)
    assert await count_of_closings(serving_slowly.broker, log) == 1


async def count_of_closings(broker: Broker, log: ReplyLog) -> int:
    messages = jetstream.messages(broker, subjects.REPLIES, log.fences_subject)
    fences = [codec.decode_fence_message(stored.data) async for stored in messages]
    return sum(isinstance(fence, Closed) for fence in fences)


async def test_cancel_that_the_queue_refuses_is_passing_trouble(broker: Broker, here: Edge) -> None:
    """JetStream's own refusals (it is full, or electing) are told like any other trouble of the broker."""
    now_ms = int(time.time() * 1000)
    job = Job(
        response=new_response_id(),
        tenant=TENANT,
        session=SessionToken("s"),
        gateway=GatewayId("gw-gone"),
        model=ModelToken("m"),
        model_name="m",
        prompt_ids=(1,),
        sampling=Sampling(max_tokens=1),
        presentation=Presentation(api="responses"),
        created_unix_ms=now_ms,
        deadline_unix_ms=now_ms + 60_000,
    )
    await publish_job(broker, job)
    config = (await broker.js.stream_info(subjects.REPLIES)).config
    config.max_msg_size = 1
    await broker.js.update_stream(config)
    with pytest.raises(HeadraceError, match="broker_unavailable"):
        await here.pipeline.cancel(job.response, TENANT)


async def test_a_stop_string_closes_the_log_though_a_cancel_is_on_its_way(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> None:
    """Else the worker would go on for nobody: the cancel is given up when the response has ended here."""
    limits = Gateway(disconnect_grace_s=0)
    config = configured(shared_nats_server, shared_redis_server, sim=SLOW, gateway=limits)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        ids = tuple((await here.tokenizer()).encode("END"))
        live = await here.pipeline.submit(ask("on and on", max_tokens=2000, stop=["END"]))
        reader = live.reader()
        await until(lambda: live.total > 3)
        reader.close()
        async with asyncio.timeout(5):
            while not here.pipeline._background:  # the grace time of nothing passes: a cancel is begun,
                await asyncio.sleep(0)
        fence = live.log.fence
        assert fence is not None
        live.feed(live.log.last_seq + 1, Tokens(fence=fence, offset=len(live.log.ids), ids=ids), now_ms())
        assert live.end is not None  # and before it was sent, the stop string is here
        log = ReplyLog(here.broker, live.job.gateway, live.response_id, live.job.session)
        async with asyncio.timeout(10):
            while (stored := (await log.read()).end) is None:
                await asyncio.sleep(0.02)
        assert isinstance(stored.message, Closed)
        assert (stored.message.reason, stored.message.total) == ("stop", live.end.total)


async def test_jobs_of_unknown_fate_count_as_responses(
    nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> None:
    """NATS is connected and silent: each refused request leaves a job to be closed, and those are bounded."""
    limits = Gateway(max_responses=2)
    config = configured(nats_server, shared_redis_server, gateway=limits)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[0])
        nats_server.pause()
        refused = await asyncio.gather(
            *(here.pipeline.submit(ask(str(n))) for n in range(2)), return_exceptions=True
        )
        codes = [error.code for error in refused if isinstance(error, HeadraceError)]
        assert codes == ["broker_unavailable"] * 2
        assert here.broker.connected
        with pytest.raises(HeadraceError, match="queue_full"):
            await here.pipeline.submit(ask("third"))
        nats_server.resume()
        await until(lambda: here.pipeline.quiet)
        assert (await finish(await here.pipeline.submit(ask("fourth", max_tokens=3))))[1].total == 3


async def test_a_cache_folder_that_cannot_be_used(
    nats_server: NatsServer,
    shared_redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Full or read-only: the gateway lives on, says so, and tries again."""
    monkeypatch.setattr("gateway.catalog.RETRY_S", 0.5)
    obstacle = tmp_path / "cache" / "tokenizers"  # in HEADRACE_CACHE_DIR
    obstacle.parent.mkdir()
    obstacle.write_text("a file")
    config = configured(nats_server, shared_redis_server)
    async with edge(config, tmp_path) as here, worker(config):
        await until(lambda: here.pipeline.ready()[1].startswith("no tokenizer"))
        with pytest.raises(HeadraceError, match="cannot store") as refused:
            await here.pipeline.submit(ask("x"))
        assert refused.value.code == "internal_error"
        assert str(tmp_path) not in refused.value.message
        assert "HEADRACE_CACHE_DIR" in caplog.text
        assert str(obstacle) in caplog.text
        obstacle.unlink()
        await until(lambda: here.pipeline.ready()[0])
        assert (await finish(await here.pipeline.submit(ask("x", max_tokens=3))))[1].total == 3


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
