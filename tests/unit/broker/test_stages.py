"""Where the time went: whatever happens to a response, the parts add up, and each is what its name says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.stages import PARTS, LogStages, Parts, StageClock, whole

QUEUED = 1_800_000_000_000.0


def played(story: str, *, engine_queue_ms: float | None = None) -> LogStages | None:
    """Of a log by its words: ``started@20 tokens@50 end@60``, milliseconds from the job's storing."""
    clock = StageClock()
    for word in story.split():
        what, at = word.split("@")
        match what:
            case "started":
                clock.started(QUEUED + float(at), QUEUED)
            case "tokens":
                clock.tokens(QUEUED + float(at))
            case _:
                return clock.ended(QUEUED + float(at), engine_queue_ms)
    raise AssertionError(story)


def stages(
    queue: float, prefill: float, decode: float, reconnect: float, told: float | None = None
) -> LogStages:
    return LogStages(
        queue_ms=queue, prefill_ms=prefill, decode_ms=decode, reconnect_ms=reconnect, engine_queue_ms=told
    )


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ("end@70", None),  # closed while it waited
        ("started@20 tokens@50 tokens@55 end@70", stages(20, 30, 20, 0)),
        ("started@20 tokens@50 end@50", stages(20, 30, 0, 0)),  # one token, in the last message
        ("started@20 end@50", stages(20, 30, 0, 0)),  # cancelled before its first token
        # the writer died: before a token, in the middle, twice in a row, and nobody came
        ("started@20 started@45 tokens@60 end@70", stages(20, 15, 10, 25)),
        ("started@20 tokens@30 tokens@35 started@90 tokens@95 end@99", stages(20, 10, 9, 60)),
        ("started@20 tokens@30 started@40 started@80 tokens@95 end@99", stages(20, 10, 4, 65)),
        ("started@20 tokens@30 started@40 end@99", stages(20, 10, 0, 69)),
        ("started@20 tokens@30 started@40 tokens@50 started@60 tokens@65 end@70", stages(20, 10, 5, 35)),
    ],
)
def test_stages(story: str, expected: LogStages | None) -> None:
    assert played(story) == expected


def test_the_engines_own_queue_is_queue_where_the_writer_told_of_it() -> None:
    assert played("started@20 tokens@50 end@70", engine_queue_ms=8) == stages(28, 22, 20, 0, 8)
    assert played("started@20 tokens@50 end@70", engine_queue_ms=80) == stages(50, 0, 20, 0, 30)
    # It tells of its own attempt: another one brought the first token, so what it waited for is in reconnect.
    story = "started@20 tokens@30 started@40 tokens@50 end@60"
    assert played(story, engine_queue_ms=8) == stages(20, 10, 10, 20)


@given(
    st.lists(st.tuples(st.sampled_from(["started", "tokens"]), st.floats(0, 1000)), max_size=12),
    st.one_of(st.none(), st.floats(0, 100)),
    st.floats(0, 50),
    st.floats(0, 50),
)
def test_the_parts_add_up_to_the_whole(
    story: list[tuple[str, float]], told: float | None, edge_ms: float, hops_ms: float
) -> None:
    clock, now = StageClock(), QUEUED
    for what, later in story:
        now += later
        if what == "started":
            clock.started(now, QUEUED)
        else:
            clock.tokens(now)
    found = clock.ended(now, told)
    total = edge_ms + (now - QUEUED) + hops_ms
    if found is not None:
        assert found.sum_ms == pytest.approx(now - QUEUED, abs=0.01)
    parts = whole(total, edge_ms, found, held=False)
    assert sum(map(parts.of, PARTS)) == pytest.approx(total, abs=0.01)
    assert all(parts.of(part) >= 0 for part in PARTS)


def test_what_no_worker_had_waited_or_needed_none() -> None:
    assert whole(100, 5, None, held=False) == Parts(edge_ms=5, queue_ms=95)
    assert whole(100, 5, None, held=True) == Parts(edge_ms=5, transport_ms=95)


def test_a_clock_that_was_set_back_brings_nothing_below_zero() -> None:
    clock = StageClock()
    clock.started(QUEUED, QUEUED + 50)
    clock.tokens(QUEUED - 10)
    clock.started(QUEUED - 20, QUEUED)
    found = clock.ended(QUEUED - 30)
    assert found is not None
    assert min(found.queue_ms, found.prefill_ms, found.decode_ms, found.reconnect_ms) >= 0
