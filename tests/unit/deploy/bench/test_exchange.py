"""When what counts: due times, arrivals, windows and totals."""

from __future__ import annotations

import json

import pytest

from deploy.bench.exchange import Exchange, Recorder
from deploy.bench.streams import End, stream_of
from deploy.bench.tally import Totals, Window

BEGINS_S = 100.0


def text(words: str) -> bytes:
    return json.dumps({"choices": [{"delta": {"content": words}}]}).encode()


def end(tokens: int | None) -> list[bytes]:
    usage = {"prompt_tokens": 5, "completion_tokens": tokens}
    said = [] if tokens is None else [json.dumps({"choices": [], "usage": usage}).encode()]
    return [*said, b"[DONE]"]


def ask(recorder: Recorder, due_s: float) -> Exchange:
    recorder.sent(due_s, due_s + 0.001)
    return Exchange(recorder, stream_of("chat", keep_text=False), due_s, asked_tokens=9)


async def test_an_answer_is_counted_from_when_it_was_due() -> None:
    recorder = Recorder(BEGINS_S, 10.0)
    asked = ask(recorder, 101.0)
    asked.feed([text("a")], 101.5)
    asked.feed([text("b"), text("c")], 101.6)  # two deltas in one read: one arrival
    asked.feed([text("d")], 103.0)
    asked.feed(end(9), 103.1)
    totals = recorder.totals
    assert totals.ttft.quantiles().max == pytest.approx(500)
    assert totals.e2e.quantiles().max == pytest.approx(2100)
    assert totals.stall.quantiles().max == pytest.approx(1400)
    assert totals.tpot.quantiles().max == pytest.approx(1500 / 8, abs=0.001)
    assert (totals.due, totals.completed, totals.told_usage) == (1, 1, 1)
    assert (totals.completed_deltas, totals.completed_arrivals) == (4, 3)
    assert (totals.completed_tokens, totals.completed_asked_tokens, totals.prompt_tokens) == (9, 9, 5)
    windows = recorder.taken()
    assert set(windows) == {1, 3}
    assert windows[1].sent == 1
    assert windows[1].late.quantiles().max == pytest.approx(1)
    assert (windows[1].deltas, windows[3].deltas) == (3, 1)
    assert (windows[1].tokens, windows[3].tokens) == (pytest.approx(9 * 3 / 4), pytest.approx(9 / 4))
    assert windows[3].ended == {"completed": 1}
    assert windows[1].gap.count + windows[3].gap.count == 2
    assert recorder.taken() == {}


async def test_without_usage_a_delta_is_a_token() -> None:
    recorder = Recorder(BEGINS_S, 10.0)
    asked = ask(recorder, 101.0)
    asked.feed([text("a")], 101.5)
    asked.feed([text("b")], 101.9)
    asked.feed(end(None), 102.0)
    assert (recorder.totals.completed_tokens, recorder.totals.told_usage) == (2, 0)
    assert recorder.taken()[1].tokens == pytest.approx(2)


async def test_what_was_due_in_the_warm_up_is_in_windows_only() -> None:
    recorder = Recorder(BEGINS_S, 10.0)
    asked = ask(recorder, 99.5)
    asked.feed([text("a")], 100.5)
    asked.feed(end(1), 100.6)
    assert recorder.totals == Totals()
    windows = recorder.taken()
    assert windows[-1].sent == 1
    assert windows[0].ended == {"completed": 1}
    ask(recorder, 110.0).over(End("failed", "x"), 110.5)  # as is what was due behind the end
    assert recorder.totals == Totals()


async def test_a_broken_answer_counts_its_text_and_no_end_to_end_time() -> None:
    recorder = Recorder(BEGINS_S, 10.0)
    asked = ask(recorder, 101.0)
    asked.feed([text("a")], 101.5)
    asked.over(End("broken", "connection closed"), 101.7)
    asked.over(End("completed"), 101.8)  # too late
    totals = recorder.totals
    assert totals.ended == {"broken": 1}
    assert totals.reasons == {"connection closed": 1}
    assert totals.ttft.count == 1
    assert totals.e2e.count == totals.tpot.count == totals.completed_tokens == 0
    window = recorder.taken()[1]
    assert window.ended == {"broken": 1}
    assert window.tokens == 1
    assert window.e2e.count == 0


def test_what_could_not_be_sent_was_due_all_the_same() -> None:
    recorder = Recorder(BEGINS_S, 10.0)
    recorder.dropped(101.0)
    assert (recorder.totals.due, recorder.totals.ended) == (1, {"dropped": 1})
    assert recorder.taken()[1].ended == {"dropped": 1}


def test_counts_of_processes_add_up() -> None:
    def counted(number: int) -> tuple[Window, Totals]:
        window = Window(sent=number, ended={"completed": 1}, deltas=2, tokens=0.5, cpu_s=0.1)
        window.gap.record_s(number)
        totals = Totals(due=number, ended={"completed": number}, reasons={"x": 1}, last_end_s=number)
        totals.ttft.record_s(number)
        return window, totals

    (window, totals), (more_window, more_totals) = counted(1), counted(2)
    window.add(more_window)
    totals.add(more_totals)
    assert (window.sent, window.ended, window.deltas) == (3, {"completed": 2}, 4)
    assert (window.tokens, window.cpu_s, window.gap.count) == (1.0, pytest.approx(0.2), 2)
    assert (totals.due, totals.ended, totals.reasons) == (3, {"completed": 3}, {"x": 2})
    assert (totals.last_end_s, totals.ttft.count) == (2, 2)
