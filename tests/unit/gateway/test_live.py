"""A live response: any merging of the log, any reader, the same text and exactly one end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.stages import PARTS, Parts
from gateway.cursor import cursor
from gateway.feed import Feed
from gateway.generation import Ended, Started, Text, Update
from gateway.live import Live, LiveReader
from gateway.text import Detokenizer, complete
from schemas import reply
from schemas.ids import Fence, GatewayId, ModelToken, ResponseId, SessionToken, TenantId, WorkerId
from schemas.job import Job, Presentation
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    Joined,
    ReplyMessage,
    Timings,
    TokenLogprobs,
    Tokens,
    Usage,
)
from schemas.sampling import Sampling
from tests.unit.gateway.tokenizers_built import byte_level

AT = 1_800_000_000_000.0  # when a message was stored
BYTES = Detokenizer(byte_level())


@dataclass
class Owner:
    calls: list[str] = field(default_factory=list)

    def live_attended(self, live: Live) -> None:
        self.calls.append("attended")

    def live_deserted(self, live: Live) -> None:
        self.calls.append("deserted")

    def live_stopped(self, live: Live, total: int) -> None:
        self.calls.append(f"stopped {total}")

    def live_started(self, live: Live) -> None: ...

    def live_tokens(self, live: Live, count: int) -> None: ...

    def live_ended(self, live: Live) -> None:
        self.calls.append("ended")

    def live_left(self, live: Live) -> None:
        self.calls.append(f"left {live.read_tokens}")


def make(stop: tuple[str, ...] = (), logprobs: int | None = None, min_tokens: int = 0) -> tuple[Live, Owner]:
    sampling = Sampling(max_tokens=1000, min_tokens=min_tokens, logprobs=logprobs)
    job = Job(
        response=ResponseId("resp_01JD0000000000000000000000"),
        tenant=TenantId("t"),
        session=SessionToken("s"),
        gateway=GatewayId("gw"),
        model=ModelToken("m"),
        model_name="m",
        prompt_ids=(1, 2, 3),
        sampling=sampling,
        presentation=Presentation(api="responses", stop=stop),
        created_unix_ms=1,
        deadline_unix_ms=2,
    )
    owner = Owner()
    return Live(job, BYTES, owner), owner


STARTED = reply.Started(attempt=1, worker=WorkerId("w"))


def tokens(offset: int, ids: list[int]) -> Tokens:
    return Tokens(fence=Fence(1), offset=offset, ids=tuple(ids))


def finished(ids: list[int], reason: reply.FinishReason = "stop") -> Finished:
    usage = Usage(prompt_tokens=3, cached_tokens=2, completion_tokens=len(ids))
    return Finished(fence=Fence(1), total=len(ids), reason=reason, ids=tuple(ids), usage=usage)


def updates(reader: LiveReader) -> list[Update]:
    """What a reader that does not wait gets."""
    coroutine = reader.next()
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    return []


def text_of(given: list[Update]) -> str:
    return "".join(update.text for update in given if isinstance(update, Text))


def ids_of(text: str) -> list[int]:
    return byte_level().encode(text).ids


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(max_size=40),
    st.lists(st.integers(1, 7), min_size=60, max_size=90),
    st.lists(st.text("a STOP:", min_size=1, max_size=3), max_size=2),
    st.data(),
)
async def test_any_merging_and_any_resume_gives_the_same(
    text: str, cuts: list[int], stop: list[str], data: st.DataObject
) -> None:
    ids = ids_of(text + "a STOP b")
    whole = complete(BYTES, ids, stop)
    live, owner = make(tuple(stop))
    reader = live.reader()
    seen: list[Update] = []
    live.feed(1, STARTED, AT)
    at = 0
    for seq, size in enumerate(cuts, start=2):
        live.feed(seq, tokens(at, ids[at : at + size]), AT)
        at += size
        if size % 2:
            seen += updates(reader) if live.end is None or not ended(seen) else []
    live.feed(100, finished(ids, "length"), AT)
    if not ended(seen):
        seen += await reader.next()
    assert isinstance(seen[0], Started)
    assert sum(isinstance(update, Ended) for update in seen) == 1
    assert text_of(seen) == live.text == whole.text
    end = seen[-1]
    assert isinstance(end, Ended)
    assert end.total == whole.total == end.usage.completion_tokens
    assert (end.outcome, end.reason) == (("completed", "stop") if whole.stopped else ("incomplete", "length"))
    assert owner.calls.count("ended") == 1
    assert await reader.next() == []

    # the same cursor at every boundary, however merged; and a resume from it gives exactly the rest
    single = live_one_by_one(ids, tuple(stop))
    numbers = {cursor(update.end_token) for update in single if isinstance(update, Text)}
    got = [update for update in seen if isinstance(update, Text)]
    assert {cursor(update.end_token) for update in got} <= numbers
    position = data.draw(st.sampled_from([0, *(update.end_token for update in got)]))
    before = "".join(update.text for update in got if update.end_token <= position)
    assert before + text_of(await live.reader(position).next()) == whole.text


def ended(seen: list[Update]) -> bool:
    return bool(seen) and isinstance(seen[-1], Ended)


def live_one_by_one(ids: list[int], stop: tuple[str, ...]) -> list[Update]:
    live, _ = make(stop)
    reader = live.reader()
    live.feed(1, STARTED, AT)
    seen = []
    for n, id_ in enumerate(ids):
        live.feed(n + 2, tokens(n, [id_]), AT)
        seen += updates(reader)
        if live.end is not None:
            return seen
    live.feed(1000, finished(ids), AT)
    return seen + updates(reader)


async def test_a_reader_waits_and_is_woken_once_per_news() -> None:
    live, _ = make()
    reader = live.reader()
    waiting = asyncio.ensure_future(reader.next())
    await asyncio.sleep(0)
    live.feed(1, STARTED, AT)
    assert await waiting == [Started()]
    half = BYTES.token_bytes
    first = next(n for n in range(300) if half(n) == b"\xf0")
    waiting = asyncio.ensure_future(reader.next())
    await asyncio.sleep(0)
    live.feed(2, tokens(0, [first]), AT)  # a quarter of a character is no news
    await asyncio.sleep(0)
    assert not waiting.done()
    live.feed(3, finished([first]), AT)
    text, end = await waiting
    assert isinstance(text, Text)
    assert isinstance(end, Ended)
    assert (text.text, text.end_token, end.total) == ("\ufffd", 2, 1)  # released by the end


async def test_stop_string_ends_at_once_and_asks_for_the_log_to_be_closed() -> None:
    live, owner = make(stop=("END",))
    reader = live.reader()
    live.feed(1, STARTED, AT)
    ids = ids_of("abc END")
    live.feed(2, tokens(0, ids + ids_of(" never shown")), AT)
    seen = await reader.next()
    assert text_of(seen) == "abc "
    assert isinstance(seen[-1], Ended)
    assert (seen[-1].outcome, seen[-1].reason, seen[-1].total) == ("completed", "stop", len(ids))
    assert owner.calls == ["attended", f"stopped {len(ids)}", "ended"]
    live.feed(3, Failed(fence=Fence(1), code="engine_failed", message="late"), AT)
    assert owner.calls.count("ended") == 1


async def test_a_stop_string_before_min_tokens_is_text() -> None:
    ids = ids_of("abc END")
    live, owner = make(stop=("END",), min_tokens=len(ids))
    live.feed(1, STARTED, AT)
    live.feed(2, tokens(0, ids), AT)
    assert live.end is None
    live.feed(3, tokens(len(ids), ids_of(" and END")), AT)
    assert live.end is not None
    assert live.text == "abc END and "
    assert owner.calls == [f"stopped {live.end.total}", "ended"]


async def test_the_parts_of_the_time_are_those_of_the_store_and_add_up() -> None:
    live, _ = make()
    job = msgspec.structs.replace(live.job, created_unix_ms=int(AT), received_unix_ms=AT, edge_ms=5.0)
    live = Live(job, BYTES, Owner())
    ids = ids_of("abc END and more")
    queued = msgspec.structs.replace(STARTED, queued_unix_ms=AT + 6)
    live.feed(1, queued, AT + 20)
    live.feed(2, tokens(0, ids[:1]), AT + 50)
    live.feed(3, tokens(1, ids[1:3]), AT + 60)
    live.feed(4, queued, AT + 90)
    live.feed(5, Tokens(fence=Fence(4), offset=3, ids=tuple(ids[3:4])), AT + 100)
    end = msgspec.structs.replace(finished(ids), fence=Fence(4), timings=Timings(engine_queue_ms=9))
    live.feed(6, end, AT + 130)
    assert live.end is not None
    assert live.end.parts == Parts(
        edge_ms=5, queue_ms=14, prefill_ms=30, decode_ms=40, reconnect_ms=40, transport_ms=1
    )
    assert live.end.total_ms == 130


@pytest.mark.parametrize("ahead_ms", [0.0, 3_600_000.0, -3_600_000.0])
@pytest.mark.parametrize(
    ("joined_at", "parts"),
    [
        (8.0, Parts(edge_ms=3, queue_ms=12, prefill_ms=30, decode_ms=82, transport_ms=3)),  # before a worker
        (60.0, Parts(edge_ms=3, decode_ms=72, transport_ms=3)),  # after the first tokens
    ],
)
async def test_the_parts_of_one_that_joined_add_up_however_the_stores_clock_goes(
    ahead_ms: float, joined_at: float, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, _ = make()
    ids = ids_of("abc END and more")
    received = AT - ahead_ms + joined_at - 5  # by the gateway's clock
    shape = msgspec.structs.replace(leader.job, created_unix_ms=int(received), received_unix_ms=received)
    live = Live(msgspec.structs.replace(shape, edge_ms=3.0, held=True), BYTES, Owner(), is_own=True)
    over: list[bool] = []
    feed = Feed(leader, live, on_over=lambda: over.append(True))
    log: dict[float, tuple[int, ReplyMessage]] = {
        20.0: (1, STARTED),
        50.0: (2, tokens(0, ids[:1])),
        100.0: (3, tokens(1, ids[1:])),
        130.0: (4, finished(ids)),
    }
    for at in sorted([*log, joined_at]):
        monkeypatch.setattr("gateway.live.now_ms", lambda at=at: AT - ahead_ms + at + 1)
        if at == joined_at:
            live.feed(50, Joined(leader=leader.response_id), AT + at)
            feed.open()
        else:
            leader.feed(*log[at], AT + at)
    assert over == [True]
    monkeypatch.setattr("gateway.live.now_ms", lambda: AT - ahead_ms + 133)
    live.feed(200, Closed(reason="completed", ids=tuple(ids), finish="stop"), AT + 132)
    assert live.end is not None
    assert live.end.parts == parts
    assert live.end.total_ms == pytest.approx(sum(parts.of(part) for part in PARTS))


async def test_timings_are_the_workers_or_none() -> None:
    ids = ids_of("abc END")
    timings = Timings(queue_ms=1, decode_ms=5)
    told = msgspec.structs.replace(finished(ids), timings=timings)
    for stop, messages, expected in (
        ((), [told], timings),
        (("END",), [told], timings),
        (("END",), [tokens(0, ids)], None),
        ((), [Closed(reason="cancelled")], None),
        ((), [Failed(fence=Fence(1), code="poison", message="x")], None),
    ):
        live, _ = make(stop=stop)
        live.feed(1, STARTED, AT)
        for seq, message in enumerate(messages, start=2):
            live.feed(seq, message, AT)
        assert live.end is not None
        assert live.end.timings == expected


@pytest.mark.parametrize(
    ("message", "outcome", "reason", "code"),
    [
        (finished(ids_of("hi"), "length"), "incomplete", "length", None),
        (finished(ids_of("hi"), "tool_calls"), "completed", "tool_calls", None),
        (Closed(reason="cancelled"), "cancelled", "cancelled", None),
        (Closed(reason="deadline"), "failed", "deadline", "deadline_exceeded"),
        (Closed(reason="stop", total=1), "completed", "stop", None),
        (Closed(reason="refused", code="engine_rejected", message="no"), "failed", None, "engine_rejected"),
        (Failed(fence=Fence(1), code="poison", message="3 attempts"), "failed", None, "poison"),
        (Failed(fence=Fence(1), code="from_the_future", message=""), "failed", None, "internal_error"),
    ],
)
async def test_outcomes(message: ReplyMessage, outcome: str, reason: str | None, code: str | None) -> None:
    live, _ = make()
    live.feed(1, STARTED, AT)
    live.feed(2, message, AT)
    end = (await live.reader().next())[-1]
    assert isinstance(end, Ended)
    assert (end.outcome, end.reason, end.code) == (outcome, reason, code)
    assert end.usage.prompt_tokens == 3
    assert end.code is None or end.message


async def test_last_reader_gone_is_told_once_and_not_after_the_end() -> None:
    live, owner = make()
    one, two = live.reader(), live.reader()
    one.close()
    one.close()
    assert owner.calls == ["attended"]
    two.close()
    assert owner.calls == ["attended", "deserted"]
    three = live.reader()
    live.feed(1, STARTED, AT)
    live.feed(2, finished([]), AT)
    three.close()
    assert owner.calls == ["attended", "deserted", "attended", "ended", "left 0"]


async def test_text_that_only_the_end_released_is_no_token_more() -> None:
    live, owner = make()
    reader = live.reader()
    ids = ids_of("\U0001f9ee")[:1]  # a part of a character
    live.feed(1, STARTED, AT)
    live.feed(2, finished(ids), AT)
    while await reader.next():
        pass
    reader.close()
    assert (live.text, live.read_tokens) == ("\ufffd", 1)
    assert owner.calls[-1] == "left 1"


async def test_what_was_read_is_known_when_the_last_reader_has_left() -> None:
    ids = ids_of("some words")
    live, owner = make()
    fast, slow = live.reader(), live.reader()
    live.feed(1, STARTED, AT)
    live.feed(2, tokens(0, ids[:2]), AT)
    await fast.next()
    live.feed(3, tokens(2, ids[2:]), AT)
    slow.close()
    fast.close()
    assert live.read_tokens == 2
    live.feed(4, Closed(reason="cancelled"), AT)
    assert owner.calls[-2:] == ["ended", "left 2"]
    again = live.for_keeping().reader()
    await again.next()
    again.close()
    assert owner.calls.count("left 2") == 1


@pytest.mark.parametrize("reads", [True, False])
async def test_one_that_ended_before_its_reader_came_is_left_once_by_that_reader(reads: bool) -> None:
    ids = ids_of("some words")
    live, owner = make()
    live.feed(1, STARTED, AT)
    live.feed(2, finished(ids), AT)
    assert owner.calls == ["ended"]
    for _ in range(2):  # a second one is told nothing new
        reader = live.reader()
        if reads:
            await reader.next()
        reader.close()
    assert [call for call in owner.calls if call.startswith("left")] == [f"left {len(ids) if reads else 0}"]


async def test_one_that_was_cancelled_without_a_reader_is_left_at_once() -> None:
    live, owner = make()
    live.feed(1, STARTED, AT)
    live.feed(2, tokens(0, ids_of("some words")), AT)
    live.feed(3, Closed(reason="cancelled"), AT)
    live.reader().close()
    assert owner.calls == ["ended", "left 0", "attended"]


async def test_logprobs_cover_every_token_that_counts() -> None:
    live, _ = make(stop=("END",), logprobs=0)
    ids = ids_of("ab END")
    live.feed(1, STARTED, AT)
    logprobs = tuple(TokenLogprobs(-float(n)) for n in range(len(ids)))
    live.feed(2, Tokens(fence=Fence(1), offset=0, ids=tuple(ids), logprobs=logprobs), AT)
    text = next(update for update in await live.reader().next() if isinstance(update, Text))
    assert (text.text, text.token_ids, text.logprobs) == ("ab ", tuple(ids), logprobs)
