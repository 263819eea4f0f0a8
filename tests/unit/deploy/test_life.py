"""The life of a response is what its stored messages say, and no word of its prompt."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from broker.jetstream import StoredMessage
from deploy.trace.life import Life, NothingKept, read_life
from deploy.trace.view import show
from schemas import codec
from schemas.ids import Fence, ResponseId, WorkerId
from schemas.job import DeadLetter, Job, Presentation
from schemas.reply import (
    Closed,
    Failed,
    Finished,
    Handoff,
    Joined,
    ReplyMessage,
    Started,
    Timings,
    Tokens,
    Usage,
)
from tests.unit.schemas.messages import MESSAGES, RESPONSE

T = 1_800_000_000_000.0
SECRET = "a prompt that nobody shall see"


def the_job(**changes: object) -> Job:
    sample = MESSAGES["job"]
    assert isinstance(sample, Job)
    shown = Presentation(
        api="responses", user_text=SECRET, stop=(SECRET,), echo=f'{{"instructions":"{SECRET}"}}'
    )
    times = {
        "created_unix_ms": int(T),
        "deadline_unix_ms": int(T) + 300_000,
        "received_unix_ms": T,
        "edge_ms": 4.0,
    }
    plain = {"presentation": shown, "held": False, "replay_of": None}
    return msgspec.structs.replace(sample, **{**plain, **times, **changes})


def stored(message: Job | DeadLetter | ReplyMessage, seq: int, after_ms: float) -> StoredMessage:
    match message:
        case Job():
            subject = f"hr.job.{message.model}.batch.over.{RESPONSE}"
        case DeadLetter():
            subject = f"hr.dead.m.{RESPONSE}"
        case Tokens() | Finished() | Failed():
            subject = f"hr.reply.gw.{RESPONSE}.s.t"
        case _:
            subject = f"hr.reply.gw.{RESPONSE}.s.f"
    return StoredMessage(subject, seq, T + after_ms, codec.encode(message), {"Hr-Tenant": "acme"})


def started(attempt: int, worker: str) -> Started:
    return Started(attempt=attempt, worker=WorkerId(worker), delivered=attempt, queued_unix_ms=T + 6)


def tokens(fence: int, offset: int, *ids: int) -> Tokens:
    return Tokens(fence=Fence(fence), offset=offset, ids=ids)


def finished(fence: int, *ids: int) -> Finished:
    usage = Usage(prompt_tokens=3, completion_tokens=len(ids))
    told = Timings(engine_queue_ms=5)
    return Finished(fence=Fence(fence), total=len(ids), reason="stop", ids=ids, usage=usage, timings=told)


JOB = stored(the_job(), 7, 6)
TAKEN_OVER = [
    stored(started(1, "wk-a"), 1, 20),
    stored(tokens(1, 0, 11), 2, 50),
    stored(tokens(1, 1, 12, 13), 3, 60),
    stored(started(2, "wk-b"), 4, 160),
    stored(tokens(1, 3, 99), 5, 165),  # of the writer that was replaced
    stored(tokens(4, 3, 14), 6, 190),
    stored(finished(4, 11, 12, 13, 14, 15), 7, 210),
]


def read(
    log: list[StoredMessage],
    *,
    jobs: list[StoredMessage] | None = None,
    dead: list[StoredMessage] | None = None,
    now_ms: float = 1000,
) -> Life:
    return read_life(RESPONSE, [JOB] if jobs is None else jobs, log, dead or [], now_unix_ms=T + now_ms)


def screen(life: Life) -> str:
    out = io.StringIO()
    show(life, None, Console(file=out, width=120))
    return out.getvalue()


def test_one_that_was_taken_over() -> None:
    life = read(TAKEN_OVER)
    assert life.state == "ended"
    assert life.outcome is not None
    assert (life.outcome.kind, life.outcome.reason, life.outcome.tokens) == ("completed", "stop", 5)
    one, two = life.attempts
    assert (one.worker, one.tokens, one.first_token_ms, one.ended) == ("wk-a", 3, 30, "replaced")
    assert (two.worker, two.tokens, two.silence_ms, two.ended) == ("wk-b", 2, 130, "finished")
    assert life.parts is not None
    assert life.parts.reconnect_ms == 130
    assert (life.parts.edge_ms, life.parts.queue_ms, life.parts.prefill_ms, life.parts.decode_ms) == (
        4,
        14,
        30,
        30,
    )
    assert (life.parts.transport_ms, life.total_ms) == (2, 210)
    assert (life.pace.tokens, life.pace.longest_gap_ms, life.pace.longest_gap_token) == (5, 130, 4)
    assert sum(life.pace.columns) == 4  # all but the first
    assert [seam.what for seam in life.seams] == [
        "job",
        "started",
        "first token",
        "started",
        "goes on",
        "finished",
    ]
    assert life.missing == ()


def test_it_says_nothing_of_what_was_asked() -> None:
    life = read(TAKEN_OVER)
    assert life.job is not None
    assert life.job.text_characters == len(SECRET)
    assert SECRET not in msgspec.json.encode(life).decode()
    assert SECRET not in screen(life)


def test_one_that_waits_one_that_runs_and_one_that_was_cancelled() -> None:
    waits = read([], now_ms=106)
    assert (waits.state, waits.parts and waits.parts.queue_ms) == ("waiting", 102)
    runs = read(TAKEN_OVER[:3], now_ms=80)
    assert (runs.state, runs.outcome, runs.attempts[0].ended) == ("running", None, "")
    assert runs.parts is not None
    assert runs.parts.decode_ms == 30
    cancelled = read([*TAKEN_OVER[:3], stored(Closed(reason="cancelled"), 4, 90)])
    assert cancelled.outcome is not None
    assert (cancelled.outcome.kind, cancelled.attempts[0].ended) == ("cancelled", "closed")


def test_a_stop_string_ends_it_where_it_stands() -> None:
    life = read([*TAKEN_OVER[:3], stored(Closed(reason="stop", total=2), 4, 90)])
    assert life.outcome is not None
    assert (life.outcome.kind, life.outcome.tokens, life.outcome.at_unix_ms) == ("completed", 2, T + 60)
    assert life.parts is not None
    assert life.parts.decode_ms == 10


def test_one_that_was_handed_off_failed_and_was_buried() -> None:
    log = [
        *TAKEN_OVER[:2],
        stored(Handoff(fence=Fence(1)), 3, 70),
        stored(started(2, "wk-b"), 4, 80),
        stored(Failed(fence=Fence(4), code="poison", message="no more"), 5, 90),
    ]
    letter = DeadLetter(
        response=RESPONSE, code="poison", message="no more", job=b"x", job_subject="s", history=("one", "two")
    )
    life = read(log, dead=[stored(letter, 9, 95)])
    assert [attempt.ended for attempt in life.attempts] == ["handed off", "failed"]
    assert life.dead is not None
    assert life.dead.history == ("one", "two")
    assert life.seams[-1].what == "dead letter"
    assert "poison" in screen(life)


def test_one_that_joined_another() -> None:
    leader = ResponseId("resp_01JD0000000000000000000001")
    life = read([stored(Joined(leader=leader), 1, 7)], jobs=[stored(the_job(held=True), 7, 6)], now_ms=50)
    assert life.state == "running"
    assert any(leader in note for note in life.missing)


@pytest.mark.parametrize(
    ("jobs", "log", "state", "note"),
    [
        ([], TAKEN_OVER, "ended", "JOBS keeps its job no longer"),
        ([JOB], [], "unknown", "REPLIES keeps its log no longer"),
        ([JOB], TAKEN_OVER[4:], "unknown", "the beginning of its log is gone"),
        ([JOB], TAKEN_OVER[:2], "unknown", "nothing writes to it any more"),
        ([StoredMessage("s", 1, T, b"\xc1", {"Hr-Tenant": "acme"})], TAKEN_OVER, "ended", "does not decode"),
    ],
)
def test_what_is_no_longer_kept_is_said(
    jobs: list[StoredMessage], log: list[StoredMessage], state: str, note: str
) -> None:
    life = read(log, jobs=jobs, now_ms=3_600_000)
    assert life.state == state
    assert any(note in missing for missing in life.missing), life.missing
    assert note.split()[-1] in screen(life)


def test_nothing_at_all() -> None:
    with pytest.raises(NothingKept):
        read([], jobs=[])
