"""Two answers side by side, and what a script is told of many."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.replay.account import Account
from deploy.replay.comparison import compare, first_difference, speed
from deploy.replay.results import Result, Side, exit_code, got_through, summarize
from deploy.replay.wanted import Ending
from schemas.ids import ResponseId

IDS = st.lists(st.integers(0, 3), max_size=20)


def account(*ids: int, outcome: Ending = "completed", **given: object) -> Account:
    return Account(outcome=outcome, ids=ids, text="".join(map(str, ids)), attempts=1, **given)  # type: ignore[arg-type]


@given(IDS, IDS)
def test_the_first_difference_is_where_all_before_is_the_same(one: list[int], other: list[int]) -> None:
    at = first_difference(one, other)
    if at is None:
        assert one == other
    else:
        assert one[:at] == other[:at]
        assert one[at : at + 1] != other[at : at + 1]


@pytest.mark.parametrize(
    ("before", "after", "answer", "token"),
    [
        (account(1, 2), account(1, 2), "same", None),
        (account(1, 2), account(1, 3, 4), "different", 1),
        (account(1, 2), account(1, 2, 3), "different", 2),
        (account(1, 2, outcome="cancelled"), account(1, 2, 3), "continues", 2),
        (account(outcome="failed"), account(1), "continues", 0),
        (account(1, 2, outcome="cancelled"), account(1, 3), "different", 1),
        (account(1, 2), account(1, outcome="failed"), "different", 1),
        (account(outcome="failed"), account(outcome="failed"), "same", None),
        (None, account(1), "unknown", None),
    ],
)
def test_answers(before: Account | None, after: Account, answer: str, token: int | None) -> None:
    found = compare(before, after, same_tokenizer=True)
    assert (found.answer, found.token, found.character) == (answer, token, None)


def test_of_two_tokenizers_the_texts_count() -> None:
    before = Account(outcome="completed", ids=(1, 2), text="so it is")
    same = Account(outcome="completed", ids=(7,), text="so it is")
    other = Account(outcome="completed", ids=(1, 2), text="so it was")
    assert compare(before, same, same_tokenizer=False).answer == "same"
    found = compare(before, other, same_tokenizer=False)
    assert (found.answer, found.token, found.character) == ("different", None, 6)


def test_times_are_compared_where_they_mean_the_same() -> None:
    before = account(1, ttft_ms=100, total_ms=1000)
    found = compare(before, account(1, ttft_ms=96, total_ms=800), same_tokenizer=True)
    assert (found.ttft, found.total) == ("alike", "faster")
    cut = account(1, outcome="cancelled", ttft_ms=100, total_ms=1000)
    found = compare(cut, account(1, 2, ttft_ms=200, total_ms=800), same_tokenizer=True)
    assert (found.ttft, found.total) == ("slower", None)
    cached = Account(outcome="completed", ids=(1,), ttft_ms=1, total_ms=1)
    found = compare(cached, account(1, ttft_ms=200, total_ms=800), same_tokenizer=True)
    assert (found.ttft, found.total) == (None, None)
    assert speed(None, 1) is None


def result(answer: str | None, outcome: str = "completed", state: str = "ran") -> Result:
    replayed = account(1, outcome=outcome)  # type: ignore[arg-type]
    after = account(2) if answer == "different" else account(1)
    comparison = (
        None
        if answer is None
        else compare(None if answer == "unknown" else after, replayed, same_tokenizer=True)
    )
    side = None if answer is None else Side(outcome=outcome, tokens=1, ttft_ms=3, total_ms=5)
    return Result(
        origin=ResponseId("a"),
        model="m",
        tenant="t",
        state=state,
        original=side,
        replay=side,
        comparison=comparison,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([result("same")], 0),
        ([result("same"), result("unknown")], 0),
        ([result("same"), result("different")], 1),
        ([result("different"), result(None, state="refused")], 3),
        ([result(None, state="lost")], 3),
        ([result("same", "failed")], 3),
        ([result("same"), result(None, state="interrupted")], 130),
    ],
)
def test_a_script_is_told_the_worst(results: list[Result], code: int) -> None:
    assert exit_code(summarize(results, len(results))) == code


@pytest.mark.parametrize(
    ("outcome", "code", "through"),
    [
        ("completed", None, True),
        ("incomplete", None, True),
        ("failed", "poison", True),
        ("failed", "invalid_job", True),
        ("failed", "deadline_exceeded", False),
        ("failed", "engine_rejected", False),
        ("failed", "of-a-newer-version", False),
        ("cancelled", None, False),
    ],
)
def test_a_letter_goes_when_nothing_is_lost_with_it(outcome: str, code: str | None, through: bool) -> None:
    side = Side(outcome=outcome, code=code, tokens=0)
    assert got_through(msgspec.structs.replace(result("same"), replay=side)) is through


def test_one_that_did_not_run_keeps_its_letter() -> None:
    assert not got_through(result(None, state="refused"))


def test_what_was_not_begun_was_interrupted() -> None:
    summary = summarize([result("same"), result("different")], 5)
    assert (summary.ran, summary.same, summary.different, summary.interrupted) == (2, 1, 1, 3)
    assert (summary.ttft_ms, summary.total_ms) == ((3, 3), (5, 5))
    assert exit_code(summary) == 130
