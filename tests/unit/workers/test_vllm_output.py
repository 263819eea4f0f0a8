"""Taking a replay off what vLLM puts out, without vLLM: its outputs are plain data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import ResponseId
from schemas.sampling import Sampling
from workers.engine.base import Delta, EngineRequest
from workers.engine.vllm_output import Replay, delta_of

REQUEST = EngineRequest(ResponseId("resp_1"), [1, 2], Sampling(max_tokens=99, logprobs=0))


def output(ids: list[int], *, reason: str | None = None, logprobs: bool = True) -> Any:
    """A DELTA output: ``token_ids`` and as many positions of log probabilities."""
    positions = [{token: SimpleNamespace(logprob=-float(token))} for token in ids] if logprobs else None
    completion = SimpleNamespace(token_ids=ids, logprobs=positions, finish_reason=reason)
    return SimpleNamespace(outputs=[completion], num_cached_tokens=2, metrics=None)


def deltas(forced: list[int], outputs: list[Any]) -> list[Delta]:
    replay = Replay(forced)
    found = []
    for each in outputs:
        assert replay.take_off(each.outputs[0])
        delta = delta_of(REQUEST, each)
        if delta is not None:
            found.append(delta)
    return found


@given(
    tokens=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    cut=st.integers(0, 29),
    sizes=st.lists(st.integers(1, 7), max_size=30),
    stopped=st.booleans(),
    logprobs=st.booleans(),
)
def test_what_remains_is_the_rest_however_outputs_were_merged(
    tokens: list[int], cut: int, sizes: list[int], stopped: bool, logprobs: bool
) -> None:
    cut = min(cut, len(tokens) - 1)  # at least one token is new: the stop token, or one within the budget
    outputs, at = [], 0
    for size in [*sizes, len(tokens)]:
        part = tokens[at : at + size]
        at += len(part)
        if part:
            reason = None if at < len(tokens) else "stop" if stopped else "length"
            outputs.append(output(part, reason=reason, logprobs=logprobs))
    rest = tokens[cut : len(tokens) - 1] if stopped else tokens[cut:]
    found = deltas(tokens[:cut], outputs)
    assert [token for delta in found for token in delta.ids] == rest
    if logprobs:
        chosen = [entry.chosen for delta in found for entry in delta.logprobs or ()]
        assert chosen == [-float(token) for token in rest]
    ends = [delta.end for delta in found if delta.end is not None]
    assert len(ends) == 1
    assert found[-1].end is ends[0]
    assert ends[0].reason == ("stop" if stopped else "length")
    assert ends[0].stop_token == (tokens[-1] if stopped else None)


def test_forced_tokens_alone_make_no_delta() -> None:
    assert deltas([5, 6, 7], [output([5]), output([6, 7])]) == []


@pytest.mark.parametrize(
    ("before", "came"),
    [
        ([], output([5, 9])),  # another token than the second that was forced
        ([], output([9])),
        ([output([5])], output([7, 8])),
        ([], output([5, 6, 7], reason="stop")),  # the end came with what was emitted before
        ([output([5, 6])], output([7], reason="length")),
        ([], output([5], reason="stop")),
    ],
)
def test_a_replay_that_went_astray_is_noticed(before: list[Any], came: Any) -> None:
    replay = Replay([5, 6, 7])
    for each in before:
        assert replay.take_off(each.outputs[0])
    assert not replay.take_off(came.outputs[0])


def test_a_request_that_vllm_gives_up_is_no_replay_gone_astray() -> None:
    replay, came = Replay([5, 6, 7]), output([5], reason="error")
    assert replay.take_off(came.outputs[0])
    delta = delta_of(REQUEST, came)
    assert delta is not None
    assert delta.end is not None
    assert delta.end.code == "engine_failed"
