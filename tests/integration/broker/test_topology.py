"""The topology against a real server: applied twice, drifted, and refused where another owns the name."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from broker import jetstream, subjects, topology
from broker.connection import Broker, BrokerUnavailable
from broker.jobs import JobPuller
from schemas.config import Nats
from schemas.ids import ModelToken, model_token
from tests.integration.conftest import NatsServer, free_port

MODEL = model_token("m", "1")


async def config_of(broker: Broker, stream: str) -> dict[str, object]:
    answer = await jetstream.call(broker, f"STREAM.INFO.{stream}", b"", dict)
    config: dict[str, object] = answer["config"]
    return config


async def test_applying_twice_changes_nothing(broker: Broker) -> None:
    before = {config.name: await config_of(broker, config.name) for config in topology.streams(broker.config)}
    await topology.apply(broker)
    after = {config.name: await config_of(broker, config.name) for config in topology.streams(broker.config)}
    assert before == after
    replies = before["REPLIES"]
    assert replies["storage"] == "file"
    assert replies["republish"] == {"src": "hr.reply.>", "dest": "hr.live.>"}
    assert replies["allow_direct"] is True
    assert before["JOBS"]["max_age"] == 24 * 3600 * 10**9


async def test_drift_is_brought_back(broker: Broker) -> None:
    config = await config_of(broker, "JOBS")
    drifted = {**config, "max_age": 3600 * 10**9, "description": "mine", "metadata": {"owner": "me"}}
    await jetstream.call(broker, "STREAM.UPDATE.JOBS", msgspec.json.encode(drifted), dict)
    await topology.apply(broker)
    restored = await config_of(broker, "JOBS")
    assert restored["max_age"] == config["max_age"]
    assert restored["description"] == config["description"]
    metadata = restored["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["owner"] == "me"
    assert metadata["headrace"] == "1"


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("subjects", {"subjects": ["orders.>"], "storage": "file"}),
        ("storage", {"subjects": ["hr.reply.>"], "storage": "memory"}),
        ("retention", {"subjects": ["hr.reply.>"], "storage": "file", "retention": "workqueue"}),
    ],
)
async def test_a_stream_of_someone_else_is_refused(
    nats_server: NatsServer, field: str, config: dict[str, object]
) -> None:
    broker = await Broker.connect(nats_server.config, name="test")
    try:
        payload = msgspec.json.encode({"name": "REPLIES", **config})
        await jetstream.call(broker, "STREAM.CREATE.REPLIES", payload, dict)
        with pytest.raises(topology.TopologyMismatch) as caught:
            await topology.apply(broker)
        assert (caught.value.stream, caught.value.field) == ("REPLIES", field)
    finally:
        await broker.close()


async def test_no_room_says_which_key_to_lower(nats_server: NatsServer) -> None:
    config = Nats(url=nats_server.url, replies_max_bytes=1 << 50)
    broker = await Broker.connect(config, name="test")
    try:
        with pytest.raises(topology.TopologyError, match=r"lower nats\.replies_max_bytes"):
            await topology.apply(broker)
    finally:
        await broker.close()


async def test_consumers_are_made_once_and_again_when_deleted(broker: Broker) -> None:
    await topology.ensure_job_consumers(broker, MODEL)
    await topology.ensure_job_consumers(broker, MODEL)
    name = subjects.job_consumer(MODEL, "interactive", "fair")
    info = await jetstream.call(broker, f"CONSUMER.INFO.JOBS.{name}", b"", dict)
    config = info["config"]
    assert config["ack_policy"] == "explicit"
    assert config["max_deliver"] == -1
    assert config["max_ack_pending"] == -1
    assert config["ack_wait"] == 15 * 10**9
    await jetstream.call(broker, f"CONSUMER.DELETE.JOBS.{name}", b"", dict)
    await topology.ensure_job_consumers(broker, MODEL)
    assert (await jetstream.call(broker, f"CONSUMER.INFO.JOBS.{name}", b"", dict))["num_pending"] == 0


async def test_a_changed_ack_wait_is_applied(broker: Broker) -> None:
    await topology.ensure_job_consumers(broker, MODEL)
    other = await Broker.connect(msgspec.structs.replace(broker.config, ack_wait_s=5), name="other")
    try:
        await topology.ensure_job_consumers(other, MODEL)
    finally:
        await other.close()
    name = subjects.job_consumer(MODEL, "batch", "over")
    info = await jetstream.call(broker, f"CONSUMER.INFO.JOBS.{name}", b"", dict)
    assert info["config"]["ack_wait"] == 5 * 10**9


async def test_no_server_is_a_clear_error() -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    with pytest.raises(BrokerUnavailable, match=url):
        await Broker.connect(Nats(url=url), name="test", wait_s=0.5)


async def test_consumers_of_a_model_without_workers_are_removed(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def infos(model: ModelToken = MODEL) -> list[dict[str, object]]:
        names = [subjects.job_consumer(model, priority, lane) for priority, lane in topology.QUEUES]
        listed = await jetstream.call(broker, "CONSUMER.LIST.JOBS", b"", dict)
        return [info for info in listed["consumers"] or () if info["name"] in names]

    def thresholds(listed: list[dict[str, object]]) -> list[object]:
        return [info["config"]["inactive_threshold"] for info in listed]  # type: ignore[index]

    monkeypatch.setattr(topology, "CONSUMER_INACTIVE_S", 0)  # as they were made by earlier versions
    await topology.ensure_job_consumers(broker, MODEL)
    before = await infos()
    monkeypatch.undo()
    await topology.ensure_job_consumers(broker, MODEL)
    after = await infos()
    assert thresholds(after) == [2 * 24 * 3600 * 10**9] * 6
    assert [info["created"] for info in after] == [info["created"] for info in before]

    monkeypatch.setattr(topology, "CONSUMER_INACTIVE_S", 2)
    puller = JobPuller(broker, MODEL, on_job=lambda job: None)
    puller.set_free(4)
    running = asyncio.create_task(puller.run())
    other = model_token("left", "1")
    await topology.ensure_job_consumers(broker, other)
    async with asyncio.timeout(20):
        while await infos(other):
            await asyncio.sleep(0.1)
    assert [info["created"] for info in await infos()] == [info["created"] for info in before]  # pulled from
    puller.stop()
    await running
    async with asyncio.timeout(20):
        while await infos():
            await asyncio.sleep(0.1)
