"""What workers make of jobs, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker import jetstream, jobs, subjects
from broker.connection import Broker
from broker.replylog import Claim, ReplyLog
from broker.tokenizers import fetch_tokenizer
from schemas import codec
from schemas.ids import Fence, WorkerId
from schemas.job import Job
from schemas.reply import Closed, Failed, Started, Tokens
from tests.integration.conftest import NatsServer
from tests.integration.workers.farm import Client, client, in_process, make_config, until
from tests.oracle import expected_of_job
from workers.engine.sim_words import VOCAB_SIZE


def closed_of(tester: Client, job: Job) -> Closed:
    end = tester.logs[job.response].end
    assert end is not None
    assert isinstance(end.message, Closed)
    return end.message


def failed_of(tester: Client, job: Job) -> Failed:
    end = tester.logs[job.response].end
    assert end is not None
    assert isinstance(end.message, Failed)
    return end.message


async def test_two_workers_200_jobs_every_token(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, slots=8, inter_token_ms=1)
    async with (
        client(broker, config, tmp_path) as tester,
        in_process(config) as one,
        in_process(config) as two,
    ):
        most = {one.id: 0, two.id: 0}

        async def watch() -> None:
            while True:
                for each in (one, two):
                    most[each.id] = max(most[each.id], len(each.worker.runs))
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        all_jobs = [tester.job([n, n + 1], max_tokens=20 + n % 60, seed=n) for n in range(200)]
        await tester.submit(*all_jobs)
        await tester.until_ended(*all_jobs, limit_s=60)
        await tester.until_all_acked()
        watching.cancel()
        await tester.check(*all_jobs)
        assert all(4 <= count <= 8 for count in most.values()), "busy, and never more than the slots"
        assert all(tester.logs[job.response].attempts == 1 for job in all_jobs)
        await one.drain()
        await two.drain()


async def test_a_worker_shows_itself_and_brings_its_tokenizer(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, slots=3)
    async with client(broker, config, tmp_path) as tester:
        async with in_process(config) as running:
            while not (cards := await tester.workers()):  # ready, and its card is on the way
                await asyncio.sleep(0.01)
            (card,) = cards
            assert (card.worker, card.model, card.state, card.slots) == (running.id, tester.model, "ready", 3)
            assert card.vocab_size == VOCAB_SIZE
            folder = await fetch_tokenizer(broker, card.tokenizer, tmp_path / "fetched")
            assert (folder / "tokenizer_config.json").is_file()
            await running.drain()
        assert await tester.workers() == []


async def test_malformed_job_is_buried_and_answered(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, ack_wait_s=1)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        job, unanswerable, good = tester.job(), tester.job(), tester.job()
        headers = {"Hr-Gateway": job.gateway, "Hr-Session": job.session}
        not_utf8 = b"\x82\xa4type\xa3job\xa8response\xa1\xff"
        too_deep = b"\x82\xa4type\xa3job\xa1x" + b"\x91" * 100_000
        wrong_type = msgspec.msgpack.encode({"type": "job", "prompt_ids": "x"})
        for data in (b"\xc1 no messagepack", not_utf8, too_deep, wrong_type):
            await broker.js.publish(subjects.job(job), data, headers=headers)
        await broker.js.publish(subjects.job(unanswerable), b"")
        nameless = subjects.job(unanswerable).replace(unanswerable.response, "x" * 3000)
        await broker.js.publish(nameless, codec.encode(unanswerable))
        await tester.submit(good)
        await tester.until_ended(job, good)
        await tester.until_all_acked()
        assert (closed_of(tester, job).reason, closed_of(tester, job).code) == ("refused", "invalid_job")
        await tester.check(good)
        for response in (job.response, unanswerable.response):
            (dead,) = await jetstream.last_messages(broker, subjects.DEAD, [f"hr.dead.*.{response}"])
            assert codec.decode_dead_letter(dead.data).code == "invalid_job"


async def test_a_job_on_anothers_subject_is_invalid(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        job, other = tester.job(), tester.job()
        headers = {"Hr-Gateway": job.gateway, "Hr-Session": job.session}
        await broker.js.publish(subjects.job(job), codec.encode(other), headers=headers)
        await tester.until_ended(job)
        assert closed_of(tester, job).code == "invalid_job"
        assert other.response not in tester.logs


@pytest.mark.parametrize(
    ("prompt", "code"),
    [((VOCAB_SIZE,), "invalid_token_id"), ((), "engine_rejected"), ((1,) * 64, "context_length_exceeded")],
)
async def test_what_the_engine_refuses_fails_with_its_code(
    broker: Broker, nats_server: NatsServer, tmp_path: Path, prompt: tuple[int, ...], code: str
) -> None:
    config = make_config(nats_server.config, max_model_len=64)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        bad, good = tester.job(prompt), tester.job()
        await tester.submit(bad, good)
        await tester.until_ended(bad, good)
        await tester.until_all_acked()
        assert failed_of(tester, bad).code == code
        await tester.check(good)


async def test_past_deadline_is_closed_and_never_started(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        job = tester.job(deadline_s=-1)
        await tester.submit(job)
        await tester.until_ended(job)
        await tester.until_all_acked()
        assert (closed_of(tester, job).reason, closed_of(tester, job).code) == (
            "deadline",
            "deadline_exceeded",
        )
        assert tester.logs[job.response].attempts == 0


async def test_deadline_while_running(broker: Broker, nats_server: NatsServer, tmp_path: Path) -> None:
    config = make_config(nats_server.config, slots=1, inter_token_ms=5)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        slow = tester.job(deadline_s=0.5, max_tokens=10_000, ignore_eos=True)
        after = tester.job()
        await tester.submit(slow, after)
        await tester.until_ended(slow, after)
        await tester.until_all_acked()
        failed = failed_of(tester, slow)
        assert failed.code == "deadline_exceeded"
        assert 0 < tester.tokens_of(slow) <= failed.total < 10_000
        await tester.check(after)


async def test_cancel_frees_the_slot_at_the_hint(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, slots=1, ack_wait_s=60)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        long = tester.job(max_tokens=10_000, ignore_eos=True)
        after = tester.job()
        await tester.submit(long, after)
        await until(lambda: tester.tokens_of(long) > 5)
        await tester.log(long).close(Closed(reason="cancelled", code="cancelled"))
        await broker.nc.publish(subjects.cancel(long.response))
        await tester.until_ended(long, after, limit_s=10)
        await tester.until_all_acked()
        assert closed_of(tester, long).reason == "cancelled"
        assert (
            tester.logs[long.response].ids == expected_of_job(long, config.sim)[0][: tester.tokens_of(long)]
        )
        await tester.check(after)


async def test_cancel_without_a_hint_is_seen_at_the_next_lease_check(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, slots=1, ack_wait_s=0.6)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        long = tester.job(max_tokens=10_000, ignore_eos=True)
        after = tester.job()
        await tester.submit(long, after)
        await until(lambda: tester.tokens_of(long) > 5)
        await tester.log(long).close(Closed(reason="cancelled", code="cancelled"))
        await tester.until_ended(after, limit_s=10)
        await tester.until_all_acked()


async def test_closed_before_it_was_pulled(broker: Broker, nats_server: NatsServer, tmp_path: Path) -> None:
    config = make_config(nats_server.config)
    async with client(broker, config, tmp_path) as tester:
        job = tester.job()
        await tester.submit(job)
        await tester.log(job).close(Closed(reason="cancelled", code="cancelled"))
        async with in_process(config):
            await tester.until_all_acked()
        assert [type(message) for message in tester.messages[job.response]] == [Closed]


async def test_redelivered_job_with_ended_log_is_acked_and_nothing_written(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        for deadline_s in (60, 0.5):
            job = tester.job(deadline_s=deadline_s)
            await tester.submit(job)
            await tester.until_ended(job)
            await tester.until_all_acked()
            before = len(tester.messages[job.response])
            if deadline_s < 1:
                await asyncio.sleep(0.6)  # the deadline must lie in the past
            again = await jobs.publish_job(broker, job, msg_id=f"again-{job.response}")  # as a redelivery
            assert not again.duplicate
            marker = tester.job()
            await tester.submit(marker)
            await tester.until_ended(marker)
            await tester.until_all_acked()
            assert len(tester.messages[job.response]) == before


async def test_a_job_that_comes_again_while_it_runs_goes_on_exactly(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    """A watcher's false alarm: the same worker gets its own job again."""
    config = make_config(nats_server.config)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        job = tester.job(max_tokens=300, ignore_eos=True)
        await tester.submit(job)
        for attempt in (1, 2, 3):
            await until(lambda n=attempt: tester.tokens_of(job) > 20 * n)  # type: ignore[misc]
            started = tester.logs[job.response].last_started
            assert started is not None
            await jobs.nak_delivery(broker, started.ack_subject)
            await until(lambda n=attempt: tester.logs[job.response].attempts == n + 1)  # type: ignore[misc]
        await tester.until_ended(job)
        await tester.until_all_acked()
        await tester.check(job)


async def test_a_log_that_is_gone_ends_its_response(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    """A next writer would begin at token 0 again, and readers would take its tokens from n on."""
    config = make_config(nats_server.config, ack_wait_s=0.9)
    async with client(broker, config, tmp_path) as tester, in_process(config) as running:
        job = tester.job(max_tokens=10_000, ignore_eos=True)
        await tester.submit(job)
        await until(lambda: tester.tokens_of(job) > 5)
        await broker.js.purge_stream(subjects.REPLIES, subject=tester.log(job).fences_subject)
        await tester.until_ended(job)
        await tester.until_all_acked()
        assert closed_of(tester, job).code == "internal_error"
        assert not running.worker.runs


async def test_a_bug_that_one_job_brings_out_costs_the_others_nothing(
    broker: Broker, nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(nats_server.config)
    claim = ReplyLog.claim

    async def failing(log: ReplyLog, make_started: Callable[[int], Started], **options: Any) -> Claim:
        if log.fences_subject == tester.log(cursed).fences_subject:
            raise ZeroDivisionError
        return await claim(log, make_started, **options)

    async with client(broker, config, tmp_path) as tester, in_process(config):
        good, cursed = tester.job(max_tokens=200, ignore_eos=True), tester.job()
        monkeypatch.setattr(ReplyLog, "claim", failing)
        await tester.submit(good, cursed)
        await tester.until_ended(good, cursed)
        await tester.until_all_acked()
        assert closed_of(tester, cursed).code == "internal_error"
        await tester.check(good)
        (dead,) = await jetstream.last_messages(broker, subjects.DEAD, [f"hr.dead.*.{cursed.response}"])
        assert codec.decode_dead_letter(dead.data).code == "invalid_job"


async def test_fenced_off_worker_stops_without_a_word(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, ack_wait_s=0.9)
    async with client(broker, config, tmp_path) as tester, in_process(config) as running:
        job = tester.job(max_tokens=10_000, ignore_eos=True)
        await tester.submit(job)
        await until(lambda: tester.tokens_of(job) > 5)
        other = await tester.log(job).claim(
            lambda attempt: Started(attempt=attempt, worker=WorkerId("other"), ack_subject="$JS.ACK.x")
        )
        assert other.fence is not None
        await until(lambda: not running.worker.runs)
        assert other.history.ids == expected_of_job(job, config.sim)[0][: len(other.history.ids)]
        assert await tester.unacked() == 1  # neither acked nor given back: it is the other's
        await tester.log(job).close(Closed(reason="cancelled"))


async def test_three_barren_attempts_are_poison(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config)
    async with client(broker, config, tmp_path) as tester:
        job = tester.job()
        for worker in ("w1", "w2", "w3"):
            await tester.log(job).claim(
                lambda n, w=worker: Started(attempt=n, worker=WorkerId(w), ack_subject="$JS.ACK.x")  # type: ignore[misc]
            )
        await tester.submit(job)
        async with in_process(config):
            await tester.until_ended(job)
            await tester.until_all_acked()
        assert (closed_of(tester, job).reason, closed_of(tester, job).code) == ("refused", "poison")
        (dead,) = await jetstream.last_messages(
            broker, subjects.DEAD, [subjects.dead(job.model, job.response)]
        )
        letter = codec.decode_dead_letter(dead.data)
        assert letter.code == "poison"
        assert codec.decode_job(letter.job) == job
        assert [line.split(" ", 1)[1] for line in letter.history] == [
            f"attempt {n} by w{n}, delivery 0" for n in (1, 2, 3)
        ]


async def test_spent_budget_is_finished_without_a_token(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config)
    async with client(broker, config, tmp_path) as tester:
        job = tester.job(max_tokens=5, ignore_eos=True)
        ids, _ = expected_of_job(job, config.sim)
        claim = await tester.log(job).claim(
            lambda n: Started(attempt=n, worker=WorkerId("w1"), ack_subject="$JS.ACK.x")
        )
        await tester.log(job).send_tokens(Tokens(fence=Fence(claim.fence or 0), offset=0, ids=tuple(ids)))
        await tester.submit(job)
        async with in_process(config):
            await tester.until_ended(job)
        await tester.check(job)


async def test_tokens_go_on_through_a_broker_restart(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    config = make_config(nats_server.config, slots=4, inter_token_ms=5)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        all_jobs = [tester.job([n], max_tokens=400, ignore_eos=True) for n in range(4)]
        await tester.submit(*all_jobs)
        await until(lambda: all(tester.tokens_of(job) > 20 for job in all_jobs))
        nats_server.restart()
        await tester.until_ended(*all_jobs)
        await tester.until_all_acked()
        await tester.check(*all_jobs)
        assert {tester.logs[job.response].attempts for job in all_jobs} == {1}


async def test_logprobs_reach_the_log(broker: Broker, nats_server: NatsServer, tmp_path: Path) -> None:
    config = make_config(nats_server.config)
    async with client(broker, config, tmp_path) as tester, in_process(config):
        job = tester.job(max_tokens=30, ignore_eos=True, logprobs=2)
        await tester.submit(job)
        await tester.until_ended(job)
        assert len(tester.logs[job.response].logprobs) == 30
