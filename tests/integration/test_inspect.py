"""What an operator sees with the plain `nats` command: its own requests, sent to a live system.

The command itself is not needed: each test sends what the subcommand in its name sends (nats-io/jsm.go), and
reads the answer with nats-py's types or with none at all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from deploy.decode import decode_lines
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway.processes import Gateway, gateway, worker

LIMIT_S = 30
QUESTION = "what nobody shall read"
SIM = {"inter_token_ms": 1, "prefill_base_ms": 1, "mean_output_tokens": 0}


@pytest.fixture(scope="module")
def served(
    shared_nats_server: NatsServer,
    shared_redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Gateway, str]]:
    """A gateway, and a response that it has answered."""
    folder: Path = tmp_path_factory.mktemp("inspect")
    with (
        worker(shared_nats_server, shared_redis_server, folder, **SIM),
        gateway(shared_nats_server, shared_redis_server, folder) as front,
    ):
        asked = {"input": QUESTION, "max_output_tokens": 5}
        answer = httpx.post(f"{front.url}/v1/responses", json=asked, timeout=LIMIT_S)
        assert answer.status_code == 200
        yield front, answer.json()["id"]


@pytest.fixture
async def nc(shared_nats_server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(shared_nats_server.url)
    yield client
    await client.close()


async def ask(nc: Client, subject: str, payload: object = None) -> dict[str, Any]:
    data = b"" if payload is None else json.dumps(payload).encode()
    answer: dict[str, Any] = json.loads((await nc.request(subject, data, timeout=LIMIT_S)).data)
    assert "error" not in answer, answer
    return answer


async def ask_all(nc: Client, subject: str, count: int) -> dict[str, dict[str, Any]]:
    """`nats req --replies N`: the answers by the service's name."""
    answers: list[dict[str, Any]] = []
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish(subject, b"", reply=inbox)
    async with asyncio.timeout(LIMIT_S):
        async for msg in subscription.messages:
            answers.append(json.loads(msg.data))
            if len(answers) == count:
                break
    await subscription.unsubscribe()
    return {answer["name"]: answer for answer in answers}


async def test_services_ls_info_stats_and_ping(served: tuple[Gateway, str], nc: Client) -> None:
    """`nats service ls`, `info`, `stats`, `ping`; read by nats-py's own types for the protocol."""
    front, _ = served
    pings = await ask_all(nc, "$SRV.PING", 2)
    assert set(pings) == {"headrace-gateway", "headrace-worker"}
    for answer in pings.values():
        assert ServicePing.from_dict(answer).type == "io.nats.micro.v1.ping_response"
    infos = await ask_all(nc, "$SRV.INFO", 2)
    assert infos["headrace-gateway"]["metadata"]["url"] == front.url
    assert infos["headrace-worker"]["metadata"]["model"] == "headrace-sim"
    for answer in infos.values():
        info = ServiceInfo.from_dict(answer)
        assert info.description.startswith("Headrace")
        assert len(info.endpoints) == 1
    worker_id = infos["headrace-worker"]["id"]
    (one,) = (await ask_all(nc, f"$SRV.STATS.headrace-worker.{worker_id}", 1)).values()
    assert ServiceStats.from_dict(one).endpoints[0].num_requests == 1
    stats = await ask_all(nc, "$SRV.STATS", 2)
    (endpoint,) = stats["headrace-gateway"]["endpoints"]
    assert (endpoint["num_requests"], endpoint["num_errors"]) == (1, 0)
    assert endpoint["average_processing_time"] > 1e6  # nanoseconds
    assert endpoint["data"]["ready"] is True
    assert stats["headrace-worker"]["endpoints"][0]["data"]["slots"] > 0
    print(json.dumps({"infos": infos, "stats": stats}, indent=1))


async def test_stream_ls_info_and_subjects(served: tuple[Gateway, str], nc: Client) -> None:
    """`nats stream ls`, `nats stream info JOBS`, `nats stream subjects REPLIES`."""
    _, response = served
    listed = await ask(nc, "$JS.API.STREAM.LIST")
    streams = {stream["config"]["name"]: stream["config"] for stream in listed["streams"]}
    assert {"JOBS", "REPLIES", "DEAD"} <= set(streams)
    assert all(config["description"].startswith("Headrace") for config in streams.values())
    info = await ask(nc, "$JS.API.STREAM.INFO.JOBS")
    metadata = info["config"]["metadata"]
    assert metadata["headrace-subjects"].startswith("hr.job.<model>")
    assert "Hr-Tenant" in metadata["headrace-headers"]
    state = (await ask(nc, "$JS.API.STREAM.INFO.REPLIES", {"subjects_filter": ">"}))["state"]
    assert {subject.split(".")[3] for subject in state["subjects"]} == {response}
    print(json.dumps({"jobs": info["config"], "subjects": state["subjects"]}, indent=1))


async def test_stream_get_last_for(served: tuple[Gateway, str], nc: Client) -> None:
    """`nats stream get JOBS --last-for 'hr.job.*.*.*.<response>' --translate 'headrace decode'`."""
    _, response = served
    js = nc.jetstream()
    job = await js.get_last_msg("JOBS", f"hr.job.*.*.*.{response}")
    assert job.headers is not None
    assert (job.headers["Hr-Response"], job.headers["Hr-Class"]) == (response, "interactive/fair")
    assert job.data is not None
    assert json.loads(next(decode_lines(job.data)))["response"] == response
    ended = await js.get_last_msg("REPLIES", f"hr.reply.*.{response}.*.t")
    assert ended.data is not None
    assert json.loads(next(decode_lines(ended.data)))["type"] == "finished"
    lease = await js.get_last_msg("REPLIES", f"hr.reply.*.{response}.*.f")
    assert lease.data is not None
    assert json.loads(next(decode_lines(lease.data)))["type"] == "started"
    print(job.subject, job.headers, *(next(decode_lines(m.data)) for m in (lease, ended) if m.data), sep="\n")


async def test_stream_view(served: tuple[Gateway, str], nc: Client) -> None:
    """`nats stream view JOBS`: a pull consumer of the moment."""
    _, response = served
    subscription = await nc.jetstream().pull_subscribe("hr.job.>", stream="JOBS")
    (msg,) = await subscription.fetch(1, timeout=LIMIT_S)
    assert msg.headers is not None
    assert msg.headers["Hr-Response"] == response
    assert QUESTION not in str(msg.headers)
    await subscription.unsubscribe()


async def test_consumer_report_and_info(served: tuple[Gateway, str], nc: Client) -> None:
    """`nats consumer report JOBS`, `nats consumer info JOBS <model>-interactive-fair`."""
    listed = await ask(nc, "$JS.API.CONSUMER.LIST.JOBS")
    queues = [
        c for c in listed["consumers"] if "durable_name" in c["config"]
    ]  # beside those of passing readers
    assert len(queues) == 6
    best = next(c for c in queues if c["name"].endswith("-interactive-fair"))
    assert best["config"]["description"].startswith("Headrace: interactive jobs of headrace-sim")
    async with asyncio.timeout(LIMIT_S):  # the ack comes a moment after the answer
        while (info := await ask(nc, f"$JS.API.CONSUMER.INFO.JOBS.{best['name']}"))["num_ack_pending"]:
            await asyncio.sleep(0.02)
    assert info["num_pending"] == 0
    assert info["delivered"]["consumer_seq"] == 1
    print(json.dumps(info, indent=1))


async def test_sub_headers_only(served: tuple[Gateway, str], nc: Client) -> None:
    """`nats sub --headers-only 'hr.live.>'`: who says what, in stored order, without what."""
    front, _ = served
    seen: list[Msg] = []
    subscription = await nc.subscribe("hr.live.>")
    async with httpx.AsyncClient(base_url=front.url, timeout=LIMIT_S) as client:
        answer = await client.post("/v1/responses", json={"input": "hello", "max_output_tokens": 3})
    response = answer.json()["id"]
    async with asyncio.timeout(LIMIT_S):
        async for msg in subscription.messages:
            seen.append(msg)
            if json.loads(next(decode_lines(msg.data)))["type"] == "finished":
                break
    assert {msg.subject.split(".")[3] for msg in seen} == {response}
    sequences = [int((msg.headers or {})["Nats-Sequence"]) for msg in seen]
    assert sequences == sorted(sequences)
    await subscription.unsubscribe()


async def test_kv_and_object(served: tuple[Gateway, str], nc: Client) -> None:
    """`nats kv ls hr_workers`, `nats kv get hr_workers <worker>`, `nats object ls hr_tokenizers`."""
    js = nc.jetstream()
    bucket = await js.key_value("hr_workers")
    (key,) = await bucket.keys()
    value = (await bucket.get(key)).value
    assert value is not None
    card = json.loads(next(decode_lines(value)))
    assert (card["worker"], card["model_name"]) == (key, "headrace-sim")
    store = await js.object_store("hr_tokenizers")
    (tokenizer,) = await store.list()
    assert tokenizer.name == card["tokenizer"]
    print(key, json.dumps(card), tokenizer.name, tokenizer.size, sep="\n")
