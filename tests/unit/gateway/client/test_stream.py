"""The pure state of a stream: each event once and in order, whatever happens to its connections."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client.backoff import Backoff
from gateway.client.errors import ResponseError, of_error_event
from gateway.client.mailbox import Mailbox
from gateway.client.stream import StreamState
from tests.unit.gateway.client.model import (
    RESPONSE_ID,
    ModelFollower,
    ModelResponse,
    check_whole,
    text_of,
)

CREATE = {"type": "response.create", "input": "hello", "idempotency_key": "k1"}
BUSY = ResponseError("broker_unavailable", "later", status=503, retry_after_s=2)
CREATED = {"type": "response.created", "sequence_number": 0, "response": {"id": RESPONSE_ID}}


def a_stream(*, now: float = 0.0, patience_s: float = 60.0, **origin: Any) -> StreamState:
    origin = origin or {"create": CREATE}
    return StreamState(backoff=Backoff(lambda: 0.0), patience_s=patience_s, now=now, **origin)


class World:
    """One stream, one response, and every gateway that follows it for the stream, or still does."""

    def __init__(self, tokens: list[str]) -> None:
        self.response = ModelResponse(tokens)
        self.state = a_stream(patience_s=1e9)
        self.mailbox = Mailbox()
        self.followers: dict[str, ModelFollower] = {}  # by lane, those of connections that still live
        self.now = 0.0
        self._lanes = 0

    def attach(self) -> None:
        if self.state.over:
            return
        self._lanes += 1
        lane = f"lane_{self._lanes}"
        (sent,) = self.state.attach(lane, self.now)
        assert sent["stream_id"] == lane
        if sent["type"] == "response.create":
            assert sent["idempotency_key"] == "k1"
        self.followers[lane] = ModelFollower(self.response, lane, sent.get("starting_after", -1))

    def drop(self, lane: str) -> None:
        del self.followers[lane]
        self.state.lost(lane, self.now)

    def refuse(self, lane: str) -> None:
        """As a gateway does whose broker is away."""
        del self.followers[lane]
        self.state.refused(lane, BUSY, self.now)

    def deliver(self, lane: str, count: int, *, twice: bool) -> None:
        follower = self.followers[lane]
        arrived, follower.sent = follower.sent[:count], follower.sent[count:]
        for event in arrived * (2 if twice else 1):
            if (fresh := self.state.take(lane, event)) is not None:
                self.mailbox.put(fresh)

    def finish(self) -> list[dict[str, Any]]:
        """A long calm at the end."""
        if self.state.lane is None:
            self.attach()
        while not self.response.ended:
            self.response.advance(3)
        for lane, follower in self.followers.items():
            follower.look()
            self.deliver(lane, len(follower.sent), twice=False)
        events = []
        while (event := self.mailbox.pop()) is not None:
            events.append(event)
        return events


# Long ones, or the drawn cases are too short to hold a hand-over with both gateways talking.
TOKENS = st.lists(st.sampled_from(["a", "bc", " d", "", "é"]), min_size=1, max_size=30)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["flow", "flow", "advance", "look", "position", "deliver", "repeat", "drop", "refuse", "attach"]
        ),
        st.integers(0, 5),
    ),
    min_size=20,
    max_size=60,
)


@given(tokens=TOKENS, steps=STEPS)
def test_each_event_once_and_in_order(tokens: list[str], steps: list[tuple[str, int]]) -> None:
    world = World(tokens)
    for step, number in steps:
        world.now += 1
        lanes = list(world.followers)
        lane = lanes[number % len(lanes)] if lanes else None
        if step == "advance":
            world.response.advance(number)
        elif step == "attach":  # again, or to another connection while the first still lives
            world.attach()
        elif lane is None:
            continue
        elif step == "flow":
            world.response.advance(1)
            world.followers[lane].look()
            world.deliver(lane, 99, twice=False)
        elif step == "look":
            world.followers[lane].look()
        elif step == "position":
            world.followers[lane].tell_position(number)
        elif step in ("deliver", "repeat"):
            world.deliver(lane, number, twice=step == "repeat")
        elif step == "drop":
            world.drop(lane)
        else:
            world.refuse(lane)
    events = world.finish()
    check_whole(events, world.response.text)
    assert world.state.over
    assert world.state.error is None


def test_merged_text_of_an_earlier_follower_is_not_mixed_in() -> None:
    """The case for which numbers alone do not suffice."""
    response = ModelResponse(["a", "b", "c", "d", "e"])
    state = a_stream()
    state.attach("old", 0)
    response.advance(1)
    old = ModelFollower(response, "old", -1)
    old.look()
    seen = [state.take("old", event) for event in old.sent]
    (resume,) = state.attach("new", 1)
    assert (resume["type"], resume["starting_after"]) == ("response.resume", 1002)
    new = ModelFollower(response, "new", resume["starting_after"])
    response.advance(2)
    old.sent.clear()
    old.look()  # b and c
    response.advance(2)
    new.look()  # b to e
    seen += [state.take("old", event) for event in old.sent]
    seen += [state.take("new", event) for event in new.sent]
    assert text_of([event for event in seen if event]) == "abcde"


def test_before_created_it_creates_again_and_behind_it_resumes() -> None:
    state = a_stream()
    assert state.attach("1", 0) == [{**CREATE, "stream_id": "1"}]
    state.lost("1", 1)
    assert state.attach("2", 2) == [{**CREATE, "stream_id": "2"}]
    state.take("2", {**CREATED, "stream_id": "2"})
    state.lost("2", 3)
    assert state.attach("3", 4) == [
        {"type": "response.resume", "response_id": RESPONSE_ID, "starting_after": 0, "stream_id": "3"}
    ]


def test_a_cancel_is_asked_for_again_on_each_connection() -> None:
    state = a_stream(response_id=RESPONSE_ID, after=7)
    cancel = {"type": "response.cancel", "response_id": RESPONSE_ID}
    assert state.cancel() == []
    assert state.attach("1", 0)[1:] == [{**cancel, "event_id": "1"}]
    state.lost("1", 1)
    assert state.attach("2", 2)[1:] == [{**cancel, "event_id": "2"}]
    assert state.cancel() == [{**cancel, "event_id": "2"}]


def test_a_passing_refusal_is_tried_again_when_the_server_says() -> None:
    state = a_stream()
    state.attach("1", 0)
    state.refused("1", BUSY, 1)
    assert state.waiting
    assert not state.due(2.9)
    assert state.due(4)
    assert state.next_look(connected=True) == pytest.approx(3)


def test_patience_is_time_spent_waiting_and_any_news_renews_it() -> None:
    state = a_stream(patience_s=10)
    state.attach("1", 4)  # 4 s of it used
    state.lost("1", 1000)
    assert not state.exhausted(1005.9)
    state.attach("2", 1005)
    state.take("2", CREATED)
    state.lost("2", 2000)
    assert not state.exhausted(2009.9)
    assert state.exhausted(2010)
    state.give_up(ResponseError("unreachable", "no gateway", status=503))
    assert isinstance(state.error, ResponseError)
    assert state.error.code == "unreachable"


def test_patience_with_refusals_ends_in_the_refusal() -> None:
    state = a_stream(patience_s=5)
    now = 0.0
    while not state.exhausted(now):
        if state.due(now):
            state.attach(f"{now}", now)
            state.refused(f"{now}", BUSY, now)
        now += 0.5
    assert now == pytest.approx(5)
    state.give_up(ResponseError("unreachable", "", status=503))
    assert state.error is BUSY


@pytest.mark.parametrize(
    ("code", "status", "accepted", "sent", "goes_on"),
    [
        ("invalid_value", 400, False, 1, False),
        ("idempotency_conflict", 409, False, 2, False),
        ("internal_error", 500, False, 1, False),
        ("internal_error", 500, True, 1, True),
        ("response_not_found", 404, True, 1, False),
        ("conversation_busy", 409, False, 1, False),
        ("conversation_busy", 409, False, 2, True),
    ],
)
def test_which_errors_end_a_stream(code: str, status: int, accepted: bool, sent: int, goes_on: bool) -> None:
    state = a_stream()
    for number in range(sent):
        state.lost(str(number - 1), number)
        state.attach(str(number), number)
    lane = str(sent - 1)
    if accepted:
        state.take(lane, CREATED)
    state.refused(lane, ResponseError(code, "no", status=status), 9)
    assert state.over is not goes_on
    assert (state.error is None) is goes_on


def test_an_end_that_was_seen_before_still_ends_it() -> None:
    """Someone resumes behind the last number."""
    state = a_stream(response_id=RESPONSE_ID, after=5004)
    state.attach("1", 0)
    end = {"type": "response.completed", "sequence_number": 5004, "response": {"id": RESPONSE_ID}}
    assert state.take("1", end) is None
    assert state.over


def test_an_error_event_as_the_gateway_sends_it() -> None:
    error = of_error_event(
        {
            "type": "error",
            "status": 429,
            "error": {
                "type": "rate_limit_error",
                "code": "queue_full",
                "message": "try later",
                "param": None,
                "headers": {"retry-after": "5"},
            },
            "stream_id": "lane_1",
        }
    )
    assert (error.code, error.message, error.status, error.retry_after_s) == (
        "queue_full",
        "try later",
        429,
        5,
    )


def test_the_first_try_is_at_once_and_later_ones_wait_longer() -> None:
    backoff = Backoff(lambda: 1.0)
    waits = [backoff.next_s() for _ in range(9)]
    assert waits[:4] == pytest.approx([0, 0.1, 0.2, 0.4])
    assert waits[-1] == 5
    assert backoff.next_s(at_least_s=20) >= 20
    backoff.reset()
    assert backoff.next_s() == 0
