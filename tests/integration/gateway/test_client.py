"""The Python client against real gateways that are killed, paused and drained under its streams. Every answer
is checked by the oracle, token by token."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from broker import jetstream, subjects
from broker.connection import Broker
from gateway.client import Client, ResponseError
from schemas import codec
from schemas.config import Sim
from tests.integration.conftest import NatsServer, RedisServer, free_port
from tests.integration.gateway.processes import Gateway, Process
from tests.oracle import expected_of_job
from workers.engine.sim_tokenizer import write_tokenizer

LIMIT_S = 60
SIM = Sim(mean_output_tokens=0)  # as of the fixture sim_worker
TERMINALS = ("response.completed", "response.incomplete", "response.failed")
LONG = {"max_output_tokens": 300}  # 1.5 s: there is time to kill
Event = dict[str, Any]


class MortalGateway(Gateway):
    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def unpause(self) -> None:
        self._process.send_signal(signal.SIGCONT)


class Edge:
    """Gateways on the broker of the module's worker. One that is killed may come back on its port."""

    def __init__(self, nats: NatsServer, redis: RedisServer, folder: Path) -> None:
        self._servers = (nats, redis, folder)
        self._started: list[MortalGateway] = []

    def start(self, **settings: object) -> MortalGateway:
        return self._start(free_port(), settings)

    def start_two(self) -> tuple[MortalGateway, MortalGateway]:
        first, second = self._spawn(free_port(), {}), self._spawn(free_port(), {})
        first.wait_until_ready()
        second.wait_until_ready()
        return first, second

    def restart(self, killed: MortalGateway) -> MortalGateway:
        return self._start(killed.port, {})

    def _start(self, port: int, settings: dict[str, object]) -> MortalGateway:
        gateway = self._spawn(port, settings)
        gateway.wait_until_ready()
        return gateway

    def _spawn(self, port: int, settings: dict[str, object]) -> MortalGateway:
        gateway = MortalGateway(*self._servers, port=port, **settings)
        gateway.port, gateway.url = port, f"http://127.0.0.1:{port}"
        self._started.append(gateway)
        return gateway

    def end(self) -> None:
        for gateway in self._started:
            gateway.unpause() if gateway.running else None
            gateway.end()


@pytest.fixture
def edge(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, sim_worker: Process, tmp_path: Path
) -> Iterator[Edge]:
    made = Edge(shared_nats_server, shared_redis_server, tmp_path)
    try:
        yield made
    finally:
        made.end()


class Notices:
    """What the client told its observer."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Event]] = []

    def __call__(self, kind: str, detail: Event) -> None:
        self.all.append((kind, detail))

    def count(self, kind: str) -> int:
        return sum(each == kind for each, _ in self.all)


class Reader:
    """One stream, read to its end by a task."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self.events: list[Event] = []
        self._task = asyncio.create_task(self._read(events))

    async def _read(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            self.events.append(event)

    async def end(self) -> Event:
        async with asyncio.timeout(LIMIT_S):
            await self._task
        return self.events[-1]

    @property
    def deltas(self) -> list[str]:
        return [event["delta"] for event in self.events if event["type"] == "response.output_text.delta"]

    @property
    def response_id(self) -> str:
        return str(self.events[0]["response"]["id"])


def readers(client: Client, count: int, **params: Any) -> list[Reader]:
    return [Reader(client.stream(input=f"question {number}", **params)) for number in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def until_streaming(streams: Sequence[Reader]) -> None:
    await until(lambda: all(len(stream.deltas) >= 3 for stream in streams))


async def check(nats: NatsServer, streams: Sequence[Reader], folder: Path) -> None:
    """Each is whole, in order and what the engine says, and each was generated once."""
    await asyncio.gather(*(stream.end() for stream in streams))
    texts = await expected_texts(nats, folder)
    for stream in streams:
        numbers = [event["sequence_number"] for event in stream.events if "sequence_number" in event]
        assert all(before < after for before, after in pairwise(numbers))
        kinds = [event["type"] for event in stream.events]
        assert kinds[0] == "response.created"
        assert [kind for kind in kinds if kind in TERMINALS] == kinds[-1:] == ["response.incomplete"]
        assert "".join(stream.deltas) == texts[stream.response_id]
        assert stream.events[-1]["response"]["output"][0]["content"][0]["text"] == texts[stream.response_id]
    assert len({stream.response_id for stream in streams}) == len(streams)


async def expected_texts(nats: NatsServer, folder: Path) -> dict[str, str]:
    """By response, of every job in the queue."""
    tokenizer = Tokenizer.from_file(str(write_tokenizer(folder, SIM.max_model_len)[0] / "tokenizer.json"))
    broker = await Broker.connect(nats.config, name="oracle")
    try:
        texts = {}
        async for item in jetstream.messages(broker, subjects.JOBS, subjects.JOBS_SUBJECTS):
            job = codec.decode_job(item.data)
            ids, _ = expected_of_job(job, SIM)
            texts[job.response] = tokenizer.decode(ids, skip_special_tokens=True)
        return {str(response): text for response, text in texts.items()}
    finally:
        await broker.close()


# -- a calm edge --------------------------------------------------------------------------------------


async def test_many_streams_share_few_connections(
    served: Gateway, shared_nats_server: NatsServer, tmp_path: Path
) -> None:
    notices = Notices()
    async with Client([served.url], on_notice=notices, streams_per_connection=8) as client:
        streams = readers(client, 40, max_output_tokens=30)
        await check(shared_nats_server, streams, tmp_path)
        assert notices.count("connected") == 5
        answer = await client.respond(input="question 0", max_output_tokens=30)
        assert answer.text == "".join(streams[0].deltas)
        assert answer.response["status"] == "incomplete"
        assert answer.response_id == answer.response["id"] != streams[0].response_id
        await until(lambda: sum(task.get_name() == "gateway-link" for task in asyncio.all_tasks()) == 1)


async def test_more_streams_than_the_gateway_takes_on_a_connection_wait(
    served: Gateway, shared_nats_server: NatsServer, tmp_path: Path
) -> None:
    async with Client([served.url]) as client:
        await check(shared_nats_server, readers(client, 12, max_output_tokens=20), tmp_path)


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"temperature": float("nan")}, "invalid_json", None),
        ({"model": "none"}, "model_not_found", "model"),
        ({"instructions": "x" * (1 << 20)}, "payload_too_large", None),
        ({"instructions": "\ud800"}, "invalid_json", None),
    ],
)
async def test_a_refusal_is_raised_in_the_stream_it_is_about(
    served: Gateway, params: dict[str, Any], code: str, param: str | None
) -> None:
    async with Client([served.url]) as client:
        other = Reader(client.stream(input="other", max_output_tokens=50))
        with pytest.raises(ResponseError) as caught:
            await client.respond(input="hello", **params)
        assert (caught.value.code, caught.value.param) == (code, param)
        assert caught.value.status >= 400
        assert (await other.end())["type"] == "response.incomplete"


async def test_what_is_no_json_hurts_nobody_else(served: Gateway) -> None:
    async with Client([served.url]) as client:
        other = Reader(client.stream(input="other", max_output_tokens=50))
        with pytest.raises(TypeError):
            await client.respond(input="hello", metadata={"when": object()})
        assert (await other.end())["type"] == "response.incomplete"


async def test_the_same_key_is_the_same_response(served: Gateway) -> None:
    async with Client([served.url]) as client, Client([served.url]) as other:
        ask: dict[str, Any] = {"input": "once", "max_output_tokens": 20, "idempotency_key": "a key of mine"}
        first, second = await asyncio.gather(client.respond(**ask), other.respond(**ask))
        assert first.response_id == second.response_id
        assert first.text == second.text


async def test_resuming_by_id_gives_what_is_behind_the_number(served: Gateway) -> None:
    async with Client([served.url]) as client, Client([served.url]) as other:
        first = Reader(client.stream(input="to be read twice", max_output_tokens=100))
        await until_streaming([first])
        middle = first.events[-1]["sequence_number"]
        rest = [event async for event in other.resume(first.response_id, middle)]
        await first.end()
        assert "".join(event.get("delta", "") for event in rest) == "".join(
            event.get("delta", "") for event in first.events if event["sequence_number"] > middle
        )
        assert rest[-1] == first.events[-1]


async def test_an_unknown_response_cannot_be_resumed(served: Gateway) -> None:
    async with Client([served.url]) as client:
        with pytest.raises(ResponseError, match="response_not_found"):
            await anext(client.resume("resp_01JZZZZZZZZZZZZZZZZZZZZZZZ"))


@pytest.mark.parametrize("own", [True, False])
async def test_a_cancel_returns_the_ended_response(served: Gateway, own: bool) -> None:
    async with Client([served.url]) as client, Client([served.url]) as other:
        stream = Reader(client.stream(input="to be cancelled", max_output_tokens=4000))
        await until_streaming([stream])
        response = await (client if own else other).cancel(stream.response_id)
        assert response["status"] == "cancelled"
        end = await stream.end()
        assert (end["type"], end["response"]) == ("response.incomplete", response)


async def test_a_slow_reader_holds_up_no_other(
    served: Gateway, shared_nats_server: NatsServer, tmp_path: Path
) -> None:
    async with Client([served.url]) as client:
        slow = client.stream(input="read late", max_output_tokens=400)
        first = await anext(slow)
        others = readers(client, 3, max_output_tokens=500)
        await check(shared_nats_server, others, tmp_path)
        late = Reader(slow)
        late.events.append(first)
        await check(shared_nats_server, [late], tmp_path)
        assert len(late.events) < 100, "what it did not read was merged"


async def test_leaving_a_stream_keeps_its_seat_until_the_response_ends(served: Gateway) -> None:
    notices = Notices()
    async with Client([served.url], on_notice=notices, streams_per_connection=1) as client:
        async with aclosing(client.stream(input="left", max_output_tokens=200)) as events:
            left = await anext(events)
        await client.respond(input="beside it", max_output_tokens=1)
        assert notices.count("connected") == 2
        ended = [event async for event in client.resume(left["response"]["id"])]
        assert ended[-1]["type"] == "response.incomplete", "leaving cancels nothing"
        await client.respond(input="in its place", max_output_tokens=1)


async def test_a_closed_client_leaves_no_stream_waiting(served: Gateway) -> None:
    tasks = asyncio.all_tasks()
    async with Client([served.url]) as client:
        stream = Reader(client.stream(input="open", max_output_tokens=4000))
        await until_streaming([stream])
    with pytest.raises(ResponseError, match="client_closed"):
        await stream.end()
    assert asyncio.all_tasks() == tasks
    with pytest.raises(ResponseError, match="client_closed"):
        await client.respond(input="late")


# -- an edge that fails -------------------------------------------------------------------------------


async def test_no_gateway_for_longer_than_patience() -> None:
    notices = Notices()
    async with Client([f"http://127.0.0.1:{free_port()}"], on_notice=notices, patience_s=0.4) as client:
        with pytest.raises(ResponseError, match="unreachable"):
            await client.respond(input="hello")
    assert notices.count("unreachable") >= 2


async def test_a_gateway_that_does_not_want_this_client(served: Gateway) -> None:
    """Linux connects 0.0.0.0 to loopback, but a gateway without authentication takes no such Host."""
    notices = Notices()
    async with Client([f"http://0.0.0.0:{served.port}"], on_notice=notices) as client:
        with pytest.raises(ResponseError, match="forbidden"):
            await client.respond(input="hello")
    assert notices.count("connected") == 1


async def test_a_full_gateway_is_passed_by(edge: Edge, served: Gateway) -> None:
    full = edge.start(max_connections=1)
    notices = Notices()
    async with Client([full.url]) as occupant, Client([full.url, served.url], on_notice=notices) as client:
        await occupant.respond(input="first", max_output_tokens=1)
        assert (await client.respond(input="second", max_output_tokens=1)).text
    assert ("disconnected", 1013) in [(kind, detail.get("code")) for kind, detail in notices.all]


async def test_a_client_may_come_before_its_gateway(edge: Edge) -> None:
    gateway = edge.start()
    gateway.kill()
    async with Client([gateway.url]) as client:
        asking = asyncio.create_task(client.respond(input="hello", max_output_tokens=3))
        await asyncio.to_thread(edge.restart, gateway)
        assert (await asking).response["status"] == "incomplete"


async def test_a_killed_gateway_is_replaced_by_another(
    edge: Edge, shared_nats_server: NatsServer, tmp_path: Path
) -> None:
    first, second = edge.start_two()
    notices = Notices()
    async with Client([first.url, second.url], on_notice=notices) as client:
        streams = readers(client, 20, **LONG)
        await until_streaming(streams)
        first.kill()
        await check(shared_nats_server, streams, tmp_path)
    assert notices.count("resumed") == 20


async def test_a_killed_gateway_comes_back(
    edge: Edge, shared_nats_server: NatsServer, tmp_path: Path
) -> None:
    gateway = edge.start()
    async with Client([gateway.url]) as client:
        streams = readers(client, 8, max_output_tokens=1000)
        await until_streaming(streams)
        gateway.kill()
        await asyncio.to_thread(edge.restart, gateway)
        await check(shared_nats_server, streams, tmp_path)


async def test_killed_while_accepting(edge: Edge, shared_nats_server: NatsServer, tmp_path: Path) -> None:
    """Some are accepted, some are not, and some are without the client's knowing: each is generated once."""
    first, second = edge.start_two()
    before = len(await expected_texts(shared_nats_server, tmp_path))
    async with Client([first.url, second.url]) as client:
        streams = readers(client, 60, max_output_tokens=40)
        await until(lambda: any(stream.events for stream in streams))
        first.kill()
        await check(shared_nats_server, streams, tmp_path)
    assert len(await expected_texts(shared_nats_server, tmp_path)) == before + 60


async def test_a_gateway_that_hangs_is_noticed_without_traffic(
    edge: Edge, shared_nats_server: NatsServer, tmp_path: Path
) -> None:
    first, second = edge.start_two()
    async with Client([first.url, second.url], ping_interval_s=0.2, ping_timeout_s=0.5) as client:
        streams = readers(client, 5, **LONG)
        await until_streaming(streams)
        with paused(first):
            await check(shared_nats_server, streams, tmp_path)


@contextmanager
def paused(gateway: MortalGateway) -> Iterator[None]:
    gateway.pause()
    try:
        yield
    finally:
        gateway.unpause()


async def test_a_draining_gateway_hands_its_streams_over(
    edge: Edge, shared_nats_server: NatsServer, tmp_path: Path
) -> None:
    first, second = edge.start_two()
    notices = Notices()
    async with Client([first.url, second.url], on_notice=notices) as client:
        streams = readers(client, 10, max_output_tokens=600)
        await until_streaming(streams)
        first.terminate()
        await until(lambda: notices.count("resumed") == 10)
        assert all(stream.events[-1]["type"] not in TERMINALS for stream in streams), "handed over alive"
        answer = await client.respond(input="meanwhile", max_output_tokens=3)
        assert answer.text
        await check(shared_nats_server, streams, tmp_path)
        kinds = [kind for kind, _ in notices.all]
        assert kinds.index("disconnected") > kinds.index("connected", 1), (
            "the new one before the old one went"
        )


async def test_a_cancel_survives_the_gateway(edge: Edge) -> None:
    first, second = edge.start_two()
    async with Client([first.url, second.url], ping_interval_s=0.2, ping_timeout_s=0.5) as client:
        stream = Reader(client.stream(input="to be cancelled", max_output_tokens=8000))
        await until_streaming([stream])
        first.pause()
        cancelling = asyncio.create_task(client.cancel(stream.response_id))
        await asyncio.sleep(0)
        first.kill()
        assert (await cancelling)["status"] == "cancelled"
        assert (await stream.end())["type"] == "response.incomplete"
