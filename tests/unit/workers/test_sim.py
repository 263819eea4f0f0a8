"""The simulated engine as an engine: batching, order, continuation, limits, faults."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from schemas.config import Sim
from schemas.ids import ResponseId
from schemas.sampling import Sampling
from tests.oracle import expected_completion
from tests.unit.workers.engine_run import EngineRun
from workers.engine.base import EngineDead
from workers.engine.sim_words import VOCAB_SIZE

FAST = Sim(inter_token_ms=0, prefill_base_ms=0, prefill_us_per_token=0)


async def started(tmp_path: Path, sim: Sim = FAST, hang_timeout_s: float = 30) -> EngineRun:
    run = EngineRun(sim, tmp_path, hang_timeout_s)
    info = await run.engine.start(run.on_step)
    assert info.vocab_size == VOCAB_SIZE
    assert (info.tokenizer_dir / "tokenizer.json").is_file()
    return run


async def test_batch_gives_what_the_oracle_says(tmp_path: Path) -> None:
    run = await started(tmp_path)
    asked = {f"r{n}": ([n, n + 1], Sampling(max_tokens=50 + n)) for n in range(100)}
    names = [run.submit(name, *request) for name, request in asked.items()]
    await run.until_ended(*names)
    for name in names:
        ids, reason = expected_completion(*asked[name])
        assert run.ids[name] == ids
        assert run.ends[name].reason == reason
    assert run.engine.load().running == run.engine.load().waiting == 0
    await run.engine.close()


async def test_continues_exactly_after_every_token(tmp_path: Path) -> None:
    run = await started(tmp_path)
    prompt, sampling = [7, 8, 9], Sampling(max_tokens=120, min_tokens=30, seed=3)
    whole, reason = expected_completion(prompt, sampling)
    assert len(whole) >= 30
    for k in range(len(whole) + 1):
        name = run.submit(f"after-{k}", prompt, sampling, prior_ids=whole[:k])
        await run.until_ended(name)
        assert whole[:k] + run.ids[name] == whole
        assert run.ends[name].reason == reason
    await run.engine.close()


async def test_spent_budget_ends_at_once(tmp_path: Path) -> None:
    run = await started(tmp_path)
    name = run.submit("spent", [1], Sampling(max_tokens=3, ignore_eos=True), prior_ids=[300, 301, 302])
    await run.until_ended(name)
    assert run.ids[name] == []
    assert run.ends[name].reason == "length"


async def test_never_more_than_slots_at_once(tmp_path: Path) -> None:
    run = await started(tmp_path, Sim(slots=2, inter_token_ms=0))
    names = [run.submit(f"r{n}", [n], Sampling(max_tokens=5, ignore_eos=True)) for n in range(6)]
    assert run.engine.load().running == 2
    assert run.engine.load().waiting == 4
    await run.until_ended(*names)
    assert all(len(step) <= 2 for step in run.steps)


async def test_the_urgent_go_first_then_who_came_first(tmp_path: Path) -> None:
    run = await started(tmp_path, Sim(slots=1, inter_token_ms=0))
    sampling = Sampling(max_tokens=5, ignore_eos=True)
    priorities = [2, 2, 2, 1, 0, 1]
    names = [run.submit(f"r{n}", [n], sampling, priority=p) for n, p in enumerate(priorities)]
    await run.until_ended(*names)
    assert run.end_order == ["r0", "r4", "r3", "r5", "r1", "r2"]


async def test_abort_frees_the_slot_and_silences_the_request(tmp_path: Path) -> None:
    run = await started(tmp_path, Sim(slots=1, inter_token_ms=0))
    endless = Sampling(max_tokens=10_000, ignore_eos=True)
    first = run.submit("first", [1], endless)
    never = run.submit("never", [2], endless)
    second = run.submit("second", [3], Sampling(max_tokens=2, ignore_eos=True))
    while not run.ids.get(first):
        await run.step()
    run.engine.abort(never)
    run.engine.abort(first)
    run.engine.abort(ResponseId("unknown"))
    had = len(run.ids[first])
    await run.until_ended(second)
    assert len(run.ids[first]) == had
    assert first not in run.ends
    assert never not in run.ids
    assert run.engine.load().running == 0


async def test_a_refusal_can_be_aborted_too(tmp_path: Path) -> None:
    run = await started(tmp_path)
    refused = run.submit("refused", [VOCAB_SIZE], Sampling(max_tokens=1))
    run.engine.abort(refused)
    other = run.submit("other", [1], Sampling(max_tokens=1, ignore_eos=True))
    await run.until_ended(other)
    assert refused not in run.ends


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ([VOCAB_SIZE], "invalid_token_id"),
        ([1, (1 << 31) - 1], "invalid_token_id"),
        ([-1], "invalid_token_id"),
        ([], "engine_rejected"),
        ([1] * 100, "context_length_exceeded"),
    ],
)
async def test_refusals_are_coded_and_harmless(tmp_path: Path, prompt: list[int], code: str) -> None:
    run = await started(tmp_path, Sim(max_model_len=100, inter_token_ms=0))
    bad = run.submit("bad", prompt, Sampling(max_tokens=4))
    good = run.submit("good", [1] * 99, Sampling(max_tokens=4, ignore_eos=True))
    await run.until_ended(bad, good)
    assert (run.ends[bad].code, run.ends[bad].reason) == (code, None)
    assert run.ends[bad].message
    assert (len(run.ids[good]), run.ends[good].reason) == (1, "length")


async def test_one_report_a_step_for_the_whole_batch(tmp_path: Path) -> None:
    run = await started(tmp_path)
    names = [run.submit(f"r{n}", [n], Sampling(max_tokens=50, ignore_eos=True)) for n in range(20)]
    await run.until_ended(*names)
    assert len(run.steps) == 50
    assert all(len(step) == 20 for step in run.steps)


async def test_times(tmp_path: Path) -> None:
    """Only lower bounds: a busy machine may take longer, never less."""
    sim = Sim(slots=1, inter_token_ms=4, prefill_base_ms=10, prefill_us_per_token=100)
    run = await started(tmp_path, sim)
    sampling = Sampling(max_tokens=6, ignore_eos=True)
    first = run.submit("first", [1] * 100, sampling)
    second = run.submit("second", [1] * 100, sampling)
    await run.until_ended(first, second)
    assert run.ends[first].prefill_ms >= 18
    assert run.ends[first].decode_ms >= 18
    assert run.ends[first].engine_queue_ms == 0
    assert run.ends[second].engine_queue_ms >= 38


async def test_logprobs_come_with_their_tokens(tmp_path: Path) -> None:
    run = await started(tmp_path)
    name = run.submit("r", [1], Sampling(max_tokens=9, ignore_eos=True, logprobs=2))
    await run.until_ended(name)
    assert len(run.logprobs[name]) == len(run.ids[name]) == 9


async def test_crash_at_start(tmp_path: Path) -> None:
    run = EngineRun(Sim(start_fault="crash"), tmp_path)
    with pytest.raises(EngineDead, match="crashed at start"):
        await run.engine.start(run.on_step)


async def test_hang_at_start_can_be_cancelled(tmp_path: Path) -> None:
    run = EngineRun(Sim(start_fault="hang"), tmp_path)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await run.engine.start(run.on_step)
    await run.engine.close()


async def test_crash_after_tokens(tmp_path: Path) -> None:
    run = await started(tmp_path, Sim(crash_after_tokens=10, inter_token_ms=0))
    run.submit("r", [1], Sampling(max_tokens=50, ignore_eos=True))
    with pytest.raises(EngineDead, match="crashed after 10 tokens"):
        await run.engine.failed()
    assert len(run.ids[ResponseId("r")]) == 10
    await run.engine.close()


async def test_hang_is_noticed_and_also_without_the_request_that_met_it(tmp_path: Path) -> None:
    run = await started(tmp_path, Sim(hang_after_tokens=10, inter_token_ms=0), hang_timeout_s=0.1)
    met = run.submit("r", [1], Sampling(max_tokens=50, ignore_eos=True))
    while len(run.ids.get(met, ())) < 10:
        await run.step()
    run.engine.abort(met)
    run.submit("later", [1], Sampling(max_tokens=50))
    with pytest.raises(EngineDead, match="hangs"):
        await run.engine.failed()
    await run.engine.close()


async def test_a_broken_sink_is_the_engines_failure(tmp_path: Path) -> None:
    run = EngineRun(FAST, tmp_path)

    def broken(_: object) -> None:
        raise KeyError("sink")

    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    await run.engine.start(broken)
    run.submit("r", [1], Sampling(max_tokens=5))
    with pytest.raises(EngineDead, match="sink"):
        await run.engine.failed()
    assert len(seen) == 1
