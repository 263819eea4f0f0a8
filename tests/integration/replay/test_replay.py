"""Stored jobs run again, by the command as an operator gives it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import msgspec
import pytest
from tokenizers import AddedToken, Tokenizer

from broker.log_reader import LogReader
from deploy.replay.comparison import first_difference
from gateway.generation import ChatMessage
from gateway.tokenizer import ChatTokenizer
from schemas.config import Config
from schemas.errors import HeadraceError
from schemas.ids import TenantId
from schemas.job import Job
from schemas.reply import Closed
from tests.integration.conftest import NatsServer
from tests.integration.replay.commands import Commands, ended_in_order
from tests.integration.workers.farm import Client, in_process
from tests.oracle import expected_completion
from workers.engine import sim_tokenizer
from workers.engine.sim_tokenizer import write_tokenizer

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
OTHER = "another-sim"  # the same tokenizer, another model


async def answered(tester: Client, *all_jobs: Job) -> None:
    await tester.submit(*all_jobs)
    await tester.until_ended(*all_jobs)


async def test_an_hour_is_replayed_and_is_the_same(tester: Client, commands: Commands) -> None:
    all_jobs = [tester.job([n, 2], max_tokens=20 + n, seed=n, deadline_s=40) for n in range(6)]
    await answered(tester, *all_jobs)
    done = await commands.replay("--since", "1h", "--rate", "50", "--json", "-")
    assert done.code == 0, done.err
    assert done.json["summary"] | {"ttft_ms": 0, "total_ms": 0} == {
        "selected": 6, "ran": 6, "same": 6, "continues": 0, "different": 0, "unknown": 0,
        "ended_badly": 0, "refused": 0, "lost": 0, "interrupted": 0, "ttft_ms": 0, "total_ms": 0,
    }  # fmt: skip
    copies = {copy.replay_of: copy for copy in await commands.copies()}
    results = {result["origin"]: result for result in done.json["results"]}
    for job in all_jobs:
        copy, result = copies[job.response], results[job.response]
        assert result["response"] == copy.response != job.response
        assert (copy.priority, copy.lane, copy.gateway[:7]) == ("batch", "over", "replay-")
        assert copy.deadline_unix_ms - copy.created_unix_ms == 40_000
        assert (copy.prompt_ids, copy.sampling) == (job.prompt_ids, job.sampling)
        headers = await commands.headers(copy.response)
        assert headers["Hr-Replay-Of"] == job.response
        assert (await commands.log(copy)).ids == (await commands.log(job)).ids
        assert result["replay"]["tokens"] == job.sampling.max_tokens
        assert "context" not in result["replay"]
    again = await commands.replay("--since", "1h")
    assert again.code == 0, again.err
    assert "6 of 6 ran: 6 same" in again.out, "replays are not replayed"


async def test_one_with_another_parameter_differs(tester: Client, commands: Commands) -> None:
    job = tester.job([7], max_tokens=30, seed=1)
    await answered(tester, job)
    done = await commands.replay(job.response, "--set", "seed=2", "--show-text")
    before, _ = expected_completion(job.prompt_ids, job.sampling, tester.config.sim)
    changed = msgspec.structs.replace(job.sampling, seed=2)
    after, _ = expected_completion(job.prompt_ids, changed, tester.config.sim)
    at = first_difference(before, after)
    assert at is not None
    assert done.code == 1, done.err
    assert f"answer       different from token {at}" in done.out
    for ids in (before, after):
        assert str(ids[max(0, at - 8) : at + 16]) in done.out
    (copy,) = await commands.copies()
    assert copy.sampling == changed
    shorter = await commands.replay(job.response, "--set", "max_tokens=10", "--json", "-")
    (result,) = shorter.json["results"]
    assert (shorter.code, result["comparison"]["token"]) == (1, 10)


async def test_a_dry_run_runs_nothing(tester: Client, commands: Commands) -> None:
    mine = tester.job([1], max_tokens=5)
    other = msgspec.structs.replace(tester.job([2], max_tokens=6), tenant=TenantId("other"))
    cancelled = tester.job([3], max_tokens=5)
    await tester.log(cancelled).close(Closed(reason="cancelled"))
    await answered(tester, mine, other, cancelled)
    for selecting, found in (
        (["--since", "1h"], [mine, other, cancelled]),
        (["--tenant", "other"], [other]),
        (["--outcome", "cancelled"], [cancelled]),
        (["--outcome", "incomplete", "--limit", "1"], [mine]),
        (["--model", tester.model, "--class", "interactive", "--until", "1h"], []),
    ):
        done = await commands.replay(*selecting, "--dry-run", "--json", "-")
        assert done.code == 0, done.err
        assert [line["response"] for line in done.json] == [job.response for job in found]
    shown = await commands.replay(mine.response, "--dry-run")
    assert "1 would run; nothing was." in shown.out
    assert len(await commands.stored()) == 3


async def test_onto_another_model(tester: Client, commands: Commands, config: Config) -> None:
    """Its tokenizer is the same, so the ids are, too; the simulated engine answers by them alone."""
    job = tester.job([5, 6], max_tokens=12)
    await answered(tester, job)
    sim = msgspec.structs.replace(config.sim, name=OTHER)
    async with in_process(msgspec.structs.replace(config, sim=sim)):
        done = await commands.replay(job.response, "--onto", OTHER, "--json", "-")
    assert done.code == 0, done.err
    (result,) = done.json["results"]
    assert (result["onto"], result["comparison"]["answer"]) == (OTHER, "same")
    (copy,) = await commands.copies()
    assert (copy.model_name, copy.prompt_ids) == (OTHER, job.prompt_ids)


async def test_a_stop_string_and_a_cut_original(tester: Client, commands: Commands) -> None:
    """Workers do not see stop strings: the replay must, as a gateway would."""
    whole = tester.job([9], max_tokens=200, ignore_eos=True)
    await answered(tester, whole)
    ids = tester.logs[whole.response].ids
    stop = chr(next(id_ for id_ in ids[3:] if id_ < 0x80))  # a byte token: that character
    job = tester.job([9], max_tokens=100_000, ignore_eos=True)
    shown = msgspec.structs.replace(job.presentation, stop=(stop,))
    job = msgspec.structs.replace(job, sampling=whole.sampling, presentation=shown)
    await tester.log(job).close(Closed(reason="cancelled"))
    await answered(tester, job)
    done = await commands.replay(job.response, "--json", "-")
    (result,) = done.json["results"]
    assert result["comparison"] == {"answer": "continues", "token": 0}
    assert (result["replay"]["outcome"], result["replay"]["reason"]) == ("completed", "stop")
    assert 0 < result["replay"]["tokens"] < 200


async def test_an_interrupted_replay_leaves_no_worker_at_work(tester: Client, commands: Commands) -> None:
    long = [tester.job([n], max_tokens=30_000, ignore_eos=True) for n in (1, 2, 3)]
    for job in long:
        await tester.log(job).close(Closed(reason="cancelled"))
    await answered(tester, *long)

    async def is_running(copy: Job) -> bool:
        return bool((await commands.log(copy)).ids)

    process = await commands.start("replay", "--since", "1h", "--concurrency", "2", "--json", "-")
    async with ended_in_order(process):
        copies = await commands.until_copied(2)
        async with asyncio.timeout(30):
            while not all([await is_running(copy) for copy in copies]):
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        done = await commands.done(process)
    assert done.code == 130, done.err
    assert done.json["summary"]["interrupted"] == 3
    assert {result["state"] for result in done.json["results"]} == {"interrupted"}
    assert len(await commands.copies()) == 2
    for copy in copies:
        assert _is_cancelled(await commands.log(copy))
    await tester.until_all_acked()


def _is_cancelled(log: LogReader) -> bool:
    return log.end is not None and log.end.message == Closed(reason="cancelled")


async def test_what_cannot_run_says_why(tester: Client, commands: Commands, config: Config) -> None:
    job = tester.job([1], max_tokens=5)
    elsewhere = msgspec.structs.replace(job, response=tester.job().response, model="gone-00000000")
    await tester.submit(elsewhere)
    await answered(tester, job)
    done = await commands.replay(job.response, elsewhere.response, "resp_01JD0000000000000000000000")
    assert done.code == 3
    assert "no job of it is kept" in done.err
    assert " refused: No worker serves" in done.out
    long = await commands.replay(job.response, "--set", f"max_tokens={config.sim.max_model_len}")
    assert long.code == 3
    assert "add --set max_tokens=N" in long.out
    with pytest.raises(BaseExceptionGroup) as unknown:
        await commands.replay(job.response, "--onto", "no-such")
    assert unknown.group_contains(HeadraceError, match="There is no model 'no-such'", depth=1)


async def test_the_broker_is_killed_meanwhile(
    tester: Client, commands: Commands, nats_server: NatsServer
) -> None:
    job = tester.job([4], max_tokens=600, ignore_eos=True)
    await answered(tester, job)
    replaying = asyncio.create_task(commands.replay(job.response, "--json", "-"))
    (copy,) = await commands.until_copied()
    while not (await commands.log(copy)).ids:
        await asyncio.sleep(0.02)
    nats_server.restart()
    done = await replaying
    assert done.code == 0, done.err
    (result,) = done.json["results"]
    assert (result["comparison"]["answer"], result["replay"]["tokens"]) == ("same", 600)


async def test_onto_a_model_with_another_tokenizer(
    tester: Client, commands: Commands, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its template is another one, too. The job knows the last turn's message only."""
    said = [ChatMessage("user", "Hello"), ChatMessage("assistant", "Yes?"), ChatMessage("user", "the river")]
    old = ChatTokenizer.load(write_tokenizer(tmp_path, config.sim.max_model_len)[0])
    job = tester.job(old.encode(old.render(said)), max_tokens=12)
    shown = msgspec.structs.replace(job.presentation, user_text="the river")
    job = msgspec.structs.replace(job, presentation=shown)
    await answered(tester, job)
    build = sim_tokenizer._build

    def build_another() -> Tokenizer:
        tokenizer = build()
        tokenizer.add_tokens([AddedToken("unheard-of", normalized=False)])
        return tokenizer

    monkeypatch.setattr(sim_tokenizer, "_build", build_another)
    monkeypatch.setattr(sim_tokenizer, "_CHAT_TEMPLATE", PLAIN_TEMPLATE)
    sim = msgspec.structs.replace(config.sim, name=OTHER)
    async with in_process(msgspec.structs.replace(config, sim=sim)):
        done = await commands.replay(job.response, "--onto", OTHER, "--json", "-")
        biased = await commands.replay(job.response, "--onto", OTHER, "--set", 'logit_bias={"5": 1}')
    assert done.code == 1, done.err
    (result,) = done.json["results"]
    assert "character" in result["comparison"]
    assert "token" not in result["comparison"]
    new = ChatTokenizer.load(write_tokenizer(tmp_path, config.sim.max_model_len)[0])
    (copy,) = await commands.copies()
    assert list(copy.prompt_ids) == new.encode("user: Hello\nassistant: Yes?\nuser: the river\nassistant:")
    assert list(copy.prompt_ids) != new.encode(old.render(said))
    assert "change it, as by --set logit_bias=null" in biased.out
