"""Reading what is stored of one response, on a real server: what a look at the whole stream finds."""

from __future__ import annotations

import asyncio
import random

import pytest

from broker import history, jetstream, subjects
from broker.connection import Broker, NoAnswer
from broker.history import SHORT, read_stored
from broker.jetstream import StoredMessage
from schemas.ids import ResponseId, new_response_id
from tests.integration.broker.samples import GATEWAY, SESSION


async def read(broker: Broker, response: ResponseId, first_seq: int = 1) -> list[tuple[int, str, bytes]]:
    names = subjects.reply_log(GATEWAY, response, SESSION)
    found = await read_stored(broker, subjects.REPLIES, names, first_seq=first_seq)
    return [(item.seq, item.subject, item.data) for item in found]


async def stored(broker: Broker, response: ResponseId) -> list[tuple[int, str, bytes]]:
    everything = jetstream.messages(broker, subjects.REPLIES, subjects.REPLIES_SUBJECTS)
    return [
        (item.seq, item.subject, item.data)
        async for item in everything
        if subjects.parse_reply(item.subject).response == response
    ]


async def write(broker: Broker, parts: str, *responses: ResponseId) -> None:
    """A letter is a message on the subject of that name, of one response after the other."""
    for n, part in enumerate(parts):
        prefix = subjects.reply(GATEWAY, responses[n % len(responses)], SESSION)
        await broker.nc.publish(f"{prefix}.{part}", b"%d" % n)
    await jetstream.publish(broker, f"{subjects.reply(GATEWAY, new_response_id(), SESSION)}.f", b"")


async def test_nothing_is_stored(broker: Broker) -> None:
    await write(broker, "ft", new_response_id())
    assert await read(broker, new_response_id()) == []


@pytest.mark.parametrize("length", [40, 6 * SHORT])
async def test_the_same_as_in_the_stream_from_wherever_one_reads(broker: Broker, length: int) -> None:
    """Of three responses' logs that lie among each other; the longer ones are read by consumers."""
    chance = random.Random(length)
    responses = [new_response_id() for _ in range(3)]
    for frequent in ("t", "f"):
        await write(broker, "".join(chance.choices("tf" + 8 * frequent, k=length)), *responses)
    for response in responses:
        truth = await stored(broker, response)
        assert await read(broker, response) == truth
        last_seq = truth[-1][0]
        for first_seq in (0, 2, last_seq // 3, last_seq // 2, last_seq - 1, last_seq, last_seq + 1):
            behind = [item for item in truth if item[0] >= first_seq]
            assert await read(broker, response, first_seq) == behind


async def test_a_log_of_one_subject(broker: Broker) -> None:
    only_tokens, only_fences = new_response_id(), new_response_id()
    await write(broker, "tttt", only_tokens)
    await write(broker, "f", only_fences)
    for response in (only_tokens, only_fences):
        assert await read(broker, response) == await stored(broker, response) != []


@pytest.mark.parametrize("length", [30, 3 * SHORT])
async def test_a_log_whose_first_messages_were_dropped(broker: Broker, length: int) -> None:
    response, other = new_response_id(), new_response_id()
    await write(broker, "ff" + "t" * (length - 2) + "f" + "t" * length, response, other)
    for before_seq in (2, length // 2, length + 2, 2 * length - 1, 2 * length + 1):
        await jetstream.purge(broker, subjects.REPLIES, subjects.REPLIES_SUBJECTS, before_seq=before_seq)
        truth = await stored(broker, response)
        assert await read(broker, response) == truth
        assert await read(broker, response, before_seq + 3) == [
            item for item in truth if item[0] >= before_seq + 3
        ]
    await jetstream.purge(broker, subjects.REPLIES, subjects.replies_of_response(response))
    assert await read(broker, response) == []


async def test_a_log_that_grows_while_it_is_read(broker: Broker) -> None:
    """Each reading is all of some moment after it was asked for."""
    response = new_response_id()
    writer = await Broker.connect(broker.config, name="writer")
    acked = 0

    async def grow() -> None:
        nonlocal acked
        chance = random.Random(5)
        prefix = subjects.reply(GATEWAY, response, SESSION)
        for _ in range(150):
            for _ in range(20):
                await writer.nc.publish(f"{prefix}.{chance.choice('tttf')}", b"x")
            acked = (await jetstream.publish(writer, f"{prefix}.{chance.choice('tf')}", b"x")).seq

    growing = asyncio.create_task(grow())
    readings: list[tuple[int, list[int]]] = []
    while not growing.done():
        first_seq = max(1, acked - random.Random(acked).choice([0, 50, 400, 4000]))
        before = acked
        readings.append((first_seq, [seq for seq, _, _ in await read(broker, response, first_seq)]))
        assert before < first_seq or readings[-1][1][-1] >= before
    await growing
    await writer.close()
    assert len(readings) > 10
    for first_seq, seqs in readings:
        assert seqs == list(range(first_seq, first_seq + len(seqs)))  # nobody else writes


async def test_answers_of_a_replica_that_lags_are_not_mixed_with_others(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = new_response_id()
    await write(broker, "fttfttt", response)
    next_messages = jetstream.next_messages
    lags = [1, 1, 0, 2]  # messages of each answer that it has not heard of

    async def lagging(
        broker: Broker, stream: str, subject_filter: str, first_seq: int, batch: int
    ) -> tuple[list[StoredMessage], bool]:
        found, more = await next_messages(broker, stream, subject_filter, first_seq, batch)
        lag = lags.pop(0) if lags else 0
        return found[: len(found) - lag], more

    monkeypatch.setattr(jetstream, "next_messages", lagging)
    assert [seq for seq, _, _ in await read(broker, response)] == list(range(1, 8))
    assert not lags
    lags.extend([1] * 1000)
    monkeypatch.setattr(history, "LAG_LIMIT_S", 0.1)
    with pytest.raises(NoAnswer):
        await read(broker, response)
