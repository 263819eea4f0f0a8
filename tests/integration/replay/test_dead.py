"""Dead letters as they come about, looked at, run again, dropped."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from broker import jetstream, subjects
from broker.connection import Broker
from broker.jobs import bury
from schemas import codec
from schemas.config import Config
from schemas.ids import TenantId
from schemas.job import DeadLetter, Job
from schemas.reply import Closed
from tests.integration.conftest import NatsServer
from tests.integration.replay.commands import Commands
from tests.integration.workers.farm import (
    Client,
    client,
    in_process,
    make_config,
    subprocess_worker,
)

KILLER = 42


async def letters(broker: Broker) -> list[str]:
    found = jetstream.messages(broker, subjects.DEAD, subjects.DEAD_SUBJECTS)
    return [subjects.parse_dead(message.subject)[1] async for message in found]


async def unreadable(tester: Client, tenant: str = "acme") -> Job:
    """A job that no worker can read, and its letter."""
    job = msgspec.structs.replace(tester.job(), tenant=TenantId(tenant))
    headers = {"Hr-Gateway": job.gateway, "Hr-Session": job.session}
    await tester.broker.js.publish(subjects.job(job), b"\xc1 no MessagePack", headers=headers)
    await tester.until_ended(job)
    return job


async def test_a_poisoned_job_is_redriven_once_it_kills_no_more(
    broker: Broker, nats_server: NatsServer, tmp_path: Path, commands: Commands
) -> None:
    config = make_config(nats_server.config, crash_on_token_id=KILLER, ack_wait_s=3600)
    async with client(broker, config, tmp_path) as tester:
        killer = tester.job([KILLER], max_tokens=8)
        with subprocess_worker(config, tmp_path) as failing:
            await failing.until_health(200, "ready")
            await tester.submit(killer)
            await tester.until_ended(killer, limit_s=90)
        shown = await commands.dead("list", "--json")
        (line,) = json.loads(shown.output)
        assert (line["response"], line["tenant"], line["code"]) == (killer.response, "acme", "poison")
        assert (line["attempts"], line["prompt_tokens"]) == (3, 1)
        assert killer.response in (await commands.dead("list", "--code", "poison")).output
        assert (await commands.dead("list", "--code", "invalid_job")).output == "No dead letters.\n"
        well = msgspec.structs.replace(config, sim=msgspec.structs.replace(config.sim, crash_on_token_id=0))
        async with in_process(well):
            refused = await commands.redrive(killer.response, "--yes", "--json", "-")
            (result,) = refused.json["results"]
            assert (refused.code, result["state"]) == (3, "refused")
            assert "add --poison" in result["problem"]
            assert await letters(broker) == [killer.response]
            assert await commands.copies() == []
            done = await commands.redrive("--all", "--yes", "--poison", "--json", "-")
        assert done.code == 0, done.err
        (result,) = done.json["results"]
        assert result["original"]["code"] == "poison"
        assert result["comparison"] == {"answer": "continues", "token": 0}
        (copy,) = await commands.copies()
        assert (copy.replay_of, copy.response) == (killer.response, result["response"])
        assert len((await commands.log(copy)).ids) == 8
        assert await letters(broker) == []
        end = (await commands.log(killer)).end
        assert end is not None
        assert isinstance(end.message, Closed), "what its client was told stays"
        nothing = await commands.redrive("--all", "--yes")
        assert (nothing.code, nothing.err) == (0, "headrace: nothing matches\n")


async def test_letters_are_shown_and_dropped(
    broker: Broker, tester: Client, config: Config, commands: Commands
) -> None:
    job, other = await unreadable(tester), await unreadable(tester)
    listed = await commands.dead("list")
    assert listed.exit_code == 0
    assert [job.response in line for line in listed.output.splitlines()] == [False, True, False]
    page = json.loads((await commands.dead("show", job.response, "--json")).output)
    assert (page["code"], page["job_bytes"]) == ("invalid_job", len(b"\xc1 no MessagePack"))
    assert page["headers"]["Hr-Code"] == "invalid_job"
    assert page["job_subject"] == subjects.job(job)
    assert "history" in page
    text = await commands.dead("show", job.response)
    assert "code           invalid_job\n" in text.output
    redriven = await commands.redrive(job.response, "--yes")
    assert redriven.code == 3
    assert "its job cannot be read (invalid_job)" in redriven.err
    unknown = await commands.dead("show", tester.job().response)
    assert (unknown.exit_code, "there is no dead letter of" in unknown.output) == (2, True)
    asked = await commands.dead("drop", job.response)
    assert (asked.exit_code, "add --yes" in asked.output) == (2, True)
    assert await letters(broker) == [job.response, other.response]
    both = await commands.dead("drop", job.response, tester.job().response, "--yes")
    assert (both.exit_code, "nothing was dropped" in both.output) == (2, True)
    dropped = await commands.dead("drop", job.response, "--yes")
    assert (dropped.exit_code, dropped.output) == (0, "1 dropped.\n")
    assert await letters(broker) == [other.response]
    assert (await commands.dead("drop", "--all", "--yes")).output == "1 dropped.\n"
    assert await letters(broker) == []


async def test_what_a_letter_s_page_tells(broker: Broker, tester: Client, commands: Commands) -> None:
    """Not what was said, unless it is asked for."""
    job = tester.job([ord("h"), ord("i")], max_tokens=8, bad_words=["secret"])
    await tester.submit(job)
    await tester.until_ended(job)
    await _bury(broker, job)
    page = await commands.dead("show", job.response)
    assert page.exit_code == 0, page.output
    assert "max_tokens=8" in page.output
    assert "prompt tokens  2\n" in page.output
    assert "secret" not in page.output
    assert "prompt         hi\n" not in page.output
    told = await commands.dead("show", job.response, "--show-text")
    assert "prompt         hi\n" in told.output


async def test_a_letter_outlives_its_job(broker: Broker, tester: Client, commands: Commands) -> None:
    """JOBS keeps a day, DEAD a week."""
    job = tester.job([1, 2], max_tokens=8)
    await tester.submit(job)
    await tester.until_ended(job)
    await _bury(broker, job)
    ids = tester.logs[job.response].ids
    await jetstream.purge(broker, subjects.JOBS, subjects.job_by_response(job.response))
    await jetstream.purge(broker, subjects.REPLIES, subjects.replies_of_response(job.response))
    gone = await commands.replay("--since", "1h", "--dry-run", "--json", "-")
    assert gone.json == []
    done = await commands.replay("--dead", "--json", "-")
    assert done.code == 0, done.err
    (copy,) = await commands.copies()
    assert (await commands.log(copy)).ids == ids
    assert await letters(broker) == [job.response], "a replay takes no letter away"


async def _bury(broker: Broker, job: Job) -> None:
    letter = DeadLetter(
        response=job.response,
        code="engine_failed",
        message="it failed",
        job=codec.encode(job),
        job_subject=subjects.job(job),
    )
    await bury(broker, job.model, letter)
