"""What the survey shows of a real server, with nobody asking for anything."""

from __future__ import annotations

import asyncio
import time

import pytest
from nats.js.api import AckPolicy, ConsumerConfig
from prometheus_client import REGISTRY

from broker import metrics, subjects, survey, topology
from broker.connection import Broker, NoAnswer
from broker.jobs import publish_job
from broker.survey import Survey
from tests.integration.broker.samples import MODEL, make_job, until
from tests.integration.conftest import NatsServer


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"headrace_{name}", labels)


def queue(model: str, lane: str = "fair") -> dict[str, str]:
    return {"model": model, "priority": "interactive", "lane": lane}


def survey_of(broker: Broker) -> Survey:
    return Survey(broker, interval_s=60, name_of=lambda token: "one" if token == MODEL else token)


async def test_queues_are_shown_with_the_age_of_their_oldest_job(broker: Broker) -> None:
    await topology.ensure_job_consumers(broker, MODEL)
    begun_s = time.time()
    for _ in range(3):
        await publish_job(broker, make_job())
    await survey_of(broker).look()
    assert shown("queue_depth", **queue("one")) == 3
    assert shown("queue_running", **queue("one")) == 0
    age_s = shown("queue_oldest_age_seconds", **queue("one"))
    assert age_s is not None
    assert 0 < age_s <= time.time() - begun_s + 0.01
    assert shown("queue_depth", **queue("one", "over")) == 0
    assert shown("queue_oldest_age_seconds", **queue("one", "over")) == 0


async def test_the_oldest_is_the_first_that_nobody_has_pulled(broker: Broker) -> None:
    await topology.ensure_job_consumers(broker, MODEL)
    await publish_job(broker, make_job())
    consumer = subjects.job_consumer(MODEL, "interactive", "fair")
    pull = await broker.js.pull_subscribe_bind(consumer, subjects.JOBS)
    await pull.fetch(1, timeout=5)
    published_s = time.time()
    await publish_job(broker, make_job())
    await survey_of(broker).look()
    assert shown("queue_depth", **queue("one")) == 1
    assert shown("queue_running", **queue("one")) == 1
    age_s = shown("queue_oldest_age_seconds", **queue("one"))
    assert age_s is not None
    assert age_s <= time.time() - published_s + 0.01


async def test_a_queue_that_is_gone_is_shown_no_more(broker: Broker) -> None:
    await topology.ensure_job_consumers(broker, MODEL)
    surveying = survey_of(broker)
    await surveying.look()
    assert shown("queue_depth", **queue("one")) == 0
    for priority, lane in topology.QUEUES:
        await broker.js.delete_consumer(subjects.JOBS, subjects.job_consumer(MODEL, priority, lane))
    await surveying.look()
    assert shown("queue_depth", **queue("one")) is None


async def test_an_operators_own_consumer_is_no_queue(broker: Broker) -> None:
    await topology.ensure_job_consumers(broker, MODEL)
    queue_filter = subjects.job_filter(MODEL, "interactive", "fair")
    for name, filter_subject in {"reads-along": queue_filter, "audit": subjects.jobs_of_model(MODEL)}.items():
        await broker.js.add_consumer(
            subjects.JOBS,
            ConsumerConfig(durable_name=name, filter_subject=filter_subject, ack_policy=AckPolicy.NONE),
        )
    for _ in range(3):
        await publish_job(broker, make_job())
    await survey_of(broker).look()
    assert shown("queue_depth", **queue("one")) == 3
    shown_of_model = [
        sample.labels
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "headrace_queue_depth" and sample.labels["model"] == "one"
    ]
    assert len(shown_of_model) == len(topology.QUEUES)


async def test_streams_are_shown_against_their_limits(broker: Broker) -> None:
    before_s = time.time()
    answers = shown("broker_round_trip_seconds_count") or 0
    await publish_job(broker, make_job())
    await survey_of(broker).look()
    assert shown("stream_messages", stream="JOBS") == 1
    held, limit = shown("stream_bytes", stream="JOBS"), shown("stream_max_bytes", stream="JOBS")
    assert held is not None
    assert 0 < held < 10_000
    assert limit == broker.config.jobs_max_bytes
    assert shown("stream_max_messages", stream="JOBS") == broker.config.jobs_max_messages
    assert shown("stream_max_messages", stream="REPLIES") is None
    assert shown("stream_oldest_age_seconds", stream="DEAD") == 0
    age_s = shown("stream_oldest_age_seconds", stream="JOBS")
    assert age_s is not None
    assert 0 < age_s <= time.time() - before_s
    assert (shown("survey_timestamp_seconds") or 0) >= before_s
    assert shown("broker_round_trip_seconds_count") == answers + 3


def slow_answers(above_s: str) -> float:
    quicker = shown("broker_round_trip_seconds_bucket", le=above_s) or 0
    return (shown("broker_round_trip_seconds_count") or 0) - quicker


async def test_a_server_that_takes_seconds_is_observed(nats_server: NatsServer, broker: Broker) -> None:
    before = slow_answers("2.0")
    nats_server.pause()
    try:
        looking = asyncio.create_task(survey_of(broker).look(), name="look")
        await asyncio.sleep(2.1)  # no condition tells it: that is how slow the answer is
    finally:
        nats_server.resume()
    await looking
    assert slow_answers("2.0") == before + 1


async def test_a_server_that_does_not_answer_is_observed_as_slow(
    nats_server: NatsServer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "TIMEOUT_S", 0.2)
    before = slow_answers("0.1")
    nats_server.pause()
    try:
        with pytest.raises(NoAnswer):
            await survey_of(broker).look()
    finally:
        nats_server.resume()
    assert slow_answers("0.1") == before + 1


def test_without_an_answer_is_above_the_highest_bucket() -> None:
    bounds = [
        float(sample.labels["le"])
        for family in metrics.BROKER_ROUND_TRIP_S.collect()
        for sample in family.samples
        if "le" in sample.labels
    ]
    assert sorted(bounds)[-2] <= survey.TIMEOUT_S


async def test_the_traffic_of_the_connection_is_counted_whichever_way_it_is_read(broker: Broker) -> None:
    survey_of(broker)
    before = shown("broker_messages_total", direction="in")
    size_before = shown("broker_bytes_total", direction="in")
    assert before is not None
    assert size_before is not None
    got: list[bytes] = []
    taken = await broker.nc.subscribe_short(
        "test.short", lambda subject, reply, headers, data: got.append(data)
    )
    for _ in range(5):
        await broker.nc.publish("test.short", b"12345678")
    await until(lambda: len(got) == 5)  # a flush does not do: its ping overtakes what waits
    assert shown("broker_messages_total", direction="in") == before + 5
    assert shown("broker_bytes_total", direction="in") == size_before + 40
    await broker.nc.unsubscribe_short(taken)
