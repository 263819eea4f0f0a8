"""A job that kills its engine, among jobs that do not."""

from __future__ import annotations

from pathlib import Path

from broker import jetstream, subjects
from broker.connection import Broker
from schemas import codec
from schemas.reply import Closed, Started
from tests.integration.conftest import NatsServer
from tests.integration.workers.farm import client, make_config, subprocess_worker

KILLER = 42


async def test_the_job_that_kills_is_told_from_its_neighbours(
    broker: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    """All of them are in prefill at each crash, so by their logs alone they look the same."""
    config = make_config(
        nats_server.config, crash_on_token_id=KILLER, prefill_us_per_token=50_000, ack_wait_s=3600
    )
    async with client(broker, config, tmp_path) as tester:
        with subprocess_worker(config, tmp_path) as one, subprocess_worker(config, tmp_path) as two:
            await one.until_health(200, "ready")
            await two.until_health(200, "ready")
            killer = tester.job([KILLER], max_tokens=50)
            neighbours = [tester.job(range(n, n + 10), max_tokens=50) for n in range(100, 106)]
            await tester.submit(*neighbours, killer)
            await tester.until_ended(killer, *neighbours, limit_s=90)
            await tester.until_all_acked()
        await tester.check(*neighbours)
    end = tester.logs[killer.response].end
    assert end is not None
    assert isinstance(end.message, Closed)
    assert (end.message.reason, end.message.code) == ("refused", "poison")
    assert len([m for m in tester.messages[killer.response] if isinstance(m, Started)]) == 3
    (dead,) = await jetstream.last_messages(broker, subjects.DEAD, [f"hr.dead.*.{killer.response}"])
    letter = codec.decode_dead_letter(dead.data)
    assert letter.code == "poison"
    assert len(letter.history) == 3
    others = [f"hr.dead.*.{job.response}" for job in neighbours]
    assert await jetstream.last_messages(broker, subjects.DEAD, others) == []
