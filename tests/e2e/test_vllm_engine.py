"""The vLLM adapter with the real vLLM: what it makes, what it refuses, and how it dies.

Most of it runs on one tiny random model; SmolLM2 shows that real text comes out. The last test of each
engine ends it, so that a start is paid for once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from schemas.sampling import Sampling, StructuredOutput
from tests.e2e import tiny_model
from tests.e2e.engine_run import EngineRun, cores
from tests.process_tree import descendants, is_running
from workers.engine.base import EngineDead
from workers.engine.vllm import VllmEngine
from workers.models import resolve

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),  # the first to use an engine pays for importing vLLM, and for the model
    pytest.mark.filterwarnings("default"),  # those of torch and vLLM are not ours to heed
]

PROMPT = list(range(40, 72))
SLOTS = 16
SMALL: dict[str, Any] = {"kv_cache_memory_bytes": 64 << 20}


def greedy(max_tokens: int, **more: Any) -> Sampling:
    return Sampling(max_tokens=max_tokens, temperature=0, **more)


def shaped(**structure: Any) -> Sampling:
    return greedy(4, structured=StructuredOutput(**structure))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tiny: Path) -> AsyncIterator[EngineRun]:
    engine = VllmEngine(resolve(str(tiny)), slots=SLOTS, table=SMALL, hang_timeout_s=8)
    try:
        yield await EngineRun(engine).start()
    finally:
        await engine.close()


# -- what it makes ----------------------------------------------------------------------------------


async def test_says_what_it_is(run: EngineRun, tiny: Path) -> None:
    assert run.info.model_name == tiny.name
    assert run.info.engine.startswith("vllm 0.")
    assert (run.info.slots, run.info.max_model_len, run.info.vocab_size) == (SLOTS, tiny_model.CONTEXT, 259)
    assert run.info.eos_token_ids == (tiny_model.EOS,)
    assert (run.info.tokenizer_dir / "tokenizer.json").is_file()


async def test_greedy_tokens_are_those_of_transformers(run: EngineRun, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    for prompt in ([5], PROMPT, list(range(3, 250))):
        ids, end = await run.answer(prompt, greedy(60, ignore_eos=True))
        fed = torch.tensor([prompt])
        expected = model.generate(
            fed, attention_mask=torch.ones_like(fed), max_new_tokens=60, min_new_tokens=60, do_sample=False
        )
        # min_new_tokens keeps transformers from the end token, ignore_eos lets vLLM choose it and go on
        assert tiny_model.EOS not in ids
        assert ids == expected[0, len(prompt) :].tolist()
        assert end.reason == "length"
        assert end.prefill_ms > 0
        assert end.decode_ms > 0


async def test_sixteen_at_once_share_the_steps(run: EngineRun) -> None:
    prompts = [[3 + i, *PROMPT] for i in range(SLOTS)]
    alone = [(await run.answer(prompt, greedy(40, ignore_eos=True)))[0] for prompt in prompts]
    before = len(run.steps)
    together = [run.submit(prompt, greedy(40, ignore_eos=True)) for prompt in prompts]
    await run.until(lambda: set(together) <= run.ends.keys())
    assert [run.ids[name] for name in together] == alone
    assert len(run.steps) - before < 40 * 2  # not 40 * 16: a step's deltas come in one call


async def test_the_stop_token_is_told_and_not_part_of_the_ids(run: EngineRun) -> None:
    free, _ = await run.answer(PROMPT, greedy(30, ignore_eos=True))
    stop = next(token for i, token in enumerate(free) if i > 5 and token not in free[:i])
    ids, end = await run.answer(PROMPT, greedy(30, stop_token_ids=(stop,), logprobs=0))
    assert ids == free[: free.index(stop)]
    assert (end.reason, end.stop_token) == ("stop", stop)


async def test_the_end_token_stops_unless_told_otherwise(run: EngineRun) -> None:
    always_end = {tiny_model.EOS: 100.0}
    ids, end = await run.answer(PROMPT, greedy(9, logit_bias=always_end))
    assert (ids, end.reason, end.stop_token) == ([], "stop", tiny_model.EOS)
    ids, end = await run.answer(PROMPT, greedy(9, logit_bias=always_end, ignore_eos=True))
    assert (ids, end.reason, end.stop_token) == ([tiny_model.EOS] * 9, "length", None)


async def test_log_probabilities(run: EngineRun) -> None:
    name = run.submit(PROMPT, greedy(5, logprobs=3, ignore_eos=True))
    await run.until(lambda: name in run.ends)
    assert len(run.logprobs[name]) == len(run.ids[name]) == 5
    for token, entry in zip(run.ids[name], run.logprobs[name], strict=True):
        assert entry.top[0] == (token, entry.chosen)
        assert [value for _, value in entry.top] == sorted((value for _, value in entry.top), reverse=True)
        assert len(entry.top) == 3


async def test_the_prefix_cache_knows_tenants_apart(run: EngineRun) -> None:
    prompt = list(range(10, 138))
    hits = [
        (await run.answer(prompt, greedy(1), cache_salt=salt))[1].cached_tokens for salt in ("a", "a", "b")
    ]
    assert hits[0] == 0
    assert hits[1] >= 96
    assert hits[2] == 0


async def test_structured_output(run: EngineRun, tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    wanted = Sampling(max_tokens=20, structured=StructuredOutput(choice=("yes please", "no thanks")))
    ids, end = await run.answer(PROMPT, wanted)
    assert tokenizer.decode(ids) in ("yes please", "no thanks")
    assert end.reason == "stop"


@pytest.mark.parametrize("k", [1, 7, 39])
async def test_a_continuation_equals_the_run_that_was_not_interrupted(run: EngineRun, k: int) -> None:
    whole, _ = await run.answer(PROMPT, greedy(40, ignore_eos=True))
    rest, end = await run.answer(PROMPT, greedy(40, ignore_eos=True), prior_ids=whole[:k])
    assert whole[:k] + rest == whole
    assert end.reason == "length"


async def test_nothing_left_to_continue(run: EngineRun) -> None:
    ids, end = await run.answer(PROMPT, greedy(4), prior_ids=[5, 6, 7, 8])
    assert (ids, end.reason, end.code) == ([], "length", None)


async def test_a_budget_beyond_the_context_ends_with_the_context(run: EngineRun) -> None:
    prompt = [9] * (tiny_model.CONTEXT - 10)
    ids, end = await run.answer(prompt, greedy(1 << 20, ignore_eos=True))
    assert (len(ids), end.reason) == (10, "length")


# -- abort ------------------------------------------------------------------------------------------


async def test_an_abort_frees_the_slot_and_is_the_last_that_is_heard(run: EngineRun) -> None:
    long = greedy(900, ignore_eos=True)
    running = [run.submit([3 + i, *PROMPT], long) for i in range(SLOTS)]
    late = run.submit([99, *PROMPT], long)
    await run.until(lambda: all(len(run.ids.get(name, ())) > 3 for name in running))
    assert (run.engine.load().running, run.engine.load().waiting) == (SLOTS, 1)
    assert 0 < run.engine.load().kv_cache_usage <= 1
    assert late not in run.ids

    gone = running.pop()
    run.engine.abort(gone)
    heard, steps = len(run.ids[gone]), len(run.steps)
    await run.until(lambda: bool(run.ids.get(late)))
    assert len(run.steps) - steps < 50  # far from the 900 that the others have to go
    assert len(run.ids[gone]) == heard
    assert gone not in run.ends

    for name in (*running, late):
        run.engine.abort(name)
    assert run.engine.load().running + run.engine.load().waiting == 0
    ids, _ = await run.answer(PROMPT, greedy(3, ignore_eos=True))
    assert len(ids) == 3


async def test_an_id_may_come_again_right_after_its_abort(run: EngineRun) -> None:
    expected, _ = await run.answer(PROMPT, greedy(10, ignore_eos=True))
    for _ in range(3):
        name = run.submit(PROMPT, greedy(900, ignore_eos=True))
        run.engine.abort(name)
        run._count -= 1  # the next submit takes the same name
    ids, end = await run.answer(PROMPT, greedy(10, ignore_eos=True))
    assert (ids, end.reason) == (expected, "length")


async def test_unknown_ids_may_be_aborted(run: EngineRun) -> None:
    run.engine.abort(next(iter(run.ends)))
    assert len((await run.answer(PROMPT, greedy(2, ignore_eos=True)))[0]) == 2


# -- what it refuses --------------------------------------------------------------------------------

BEYOND = 259  # the first id that the model does not have
BAD: list[tuple[str, list[Any], Sampling, str]] = [
    ("prompt id beyond the vocabulary", [4, BEYOND], greedy(4), "invalid_token_id"),
    ("prompt id far beyond it", [1 << 40], greedy(4), "invalid_token_id"),
    ("negative prompt id", [-1], greedy(4), "invalid_token_id"),
    ("biased id", PROMPT, greedy(4, logit_bias={BEYOND: 1.0}), "invalid_token_id"),
    ("stop id", PROMPT, greedy(4, stop_token_ids=(BEYOND,)), "invalid_token_id"),
    ("allowed id", PROMPT, greedy(4, allowed_token_ids=(BEYOND,)), "invalid_token_id"),
    ("full prompt", [5] * tiny_model.CONTEXT, greedy(4), "context_length_exceeded"),
    ("huge prompt", [5] * 100_000, greedy(4), "context_length_exceeded"),
    ("no prompt", [], greedy(4), "engine_rejected"),
    ("float id", [4.0], greedy(4), "engine_rejected"),
    ("text for a seed", PROMPT, greedy(4, seed="x"), "engine_rejected"),
    ("float budget", PROMPT, Sampling(max_tokens=4.5), "engine_rejected"),  # type: ignore[arg-type]
    ("not a number", PROMPT, greedy(4, presence_penalty=float("nan")), "engine_rejected"),
    ("biased by not a number", PROMPT, greedy(4, logit_bias={5: float("nan")}), "engine_rejected"),
    ("minimum above maximum", PROMPT, greedy(4, min_tokens=5), "engine_rejected"),
    ("nothing allowed", PROMPT, greedy(4, allowed_token_ids=()), "engine_rejected"),
    ("empty bad word", PROMPT, greedy(4, bad_words=("",)), "engine_rejected"),
    ("broken schema", PROMPT, shaped(json_schema='{"type": '), "engine_rejected"),
    ("unknown type", PROMPT, shaped(json_schema='{"type": 5}'), "engine_rejected"),
    ("deep schema", PROMPT, shaped(json_schema="[" * 9000), "engine_rejected"),
    ("broken grammar", PROMPT, shaped(grammar="root ::= ("), "engine_rejected"),
    ("grammar without end", PROMPT, shaped(grammar="root ::= other"), "engine_rejected"),
    ("broken regex", PROMPT, shaped(regex="((("), "engine_rejected"),
    ("two structures", PROMPT, shaped(regex="a", json_object=True), "engine_rejected"),
    ("long choice", PROMPT, shaped(choice=("x" * 70_000,)), "engine_rejected"),
]


@pytest.mark.parametrize(
    ("prompt", "sampling", "code"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
async def test_bad_requests_end_with_a_code_and_the_engine_goes_on(
    run: EngineRun, prompt: list[int], sampling: Sampling, code: str
) -> None:
    ids, end = await run.answer(prompt, sampling)
    assert (ids, end.reason, end.code) == ([], None, code)
    assert end.message
    assert "Traceback" not in end.message
    assert len((await run.answer(PROMPT, greedy(2, ignore_eos=True)))[0]) == 2


ODD = {
    "all but impossible temperature": Sampling(max_tokens=5, temperature=1e-9),
    "vanishing repetition penalty": Sampling(max_tokens=5, repetition_penalty=1e-300),
    "more alternatives than tokens": Sampling(max_tokens=5, top_k=1 << 20, min_p=1.0, top_p=1e-9),
    "only the forbidden is allowed": Sampling(
        max_tokens=5, min_tokens=5, allowed_token_ids=(tiny_model.EOS,)
    ),
    "every id is a stop": Sampling(max_tokens=5, min_tokens=5, stop_token_ids=tuple(range(259))),
    "all at minus 100": Sampling(max_tokens=5, logit_bias=dict.fromkeys(range(259), -100.0), logprobs=20),
    "largest seed": Sampling(max_tokens=5, seed=(1 << 63) - 1),
    "smallest seed": Sampling(max_tokens=5, seed=-(1 << 63)),
    "everything is bad": Sampling(max_tokens=5, bad_words=tuple("abcdefghijklmnopqrstuvwxyz \U0001f600")),
}


@pytest.mark.parametrize("sampling", ODD.values(), ids=ODD.keys())
async def test_odd_requests_do_not_disturb_their_neighbours(run: EngineRun, sampling: Sampling) -> None:
    expected, _ = await run.answer(PROMPT, greedy(20, ignore_eos=True))
    odd, neighbour = run.submit(PROMPT, sampling), run.submit(PROMPT, greedy(20, ignore_eos=True))
    await run.until(lambda: {odd, neighbour} <= run.ends.keys())
    assert run.ids[neighbour] == expected
    assert run.ends[odd].reason is not None or run.ends[odd].code == "engine_rejected"


async def test_a_configuration_that_vllm_refuses(tiny: Path) -> None:
    engine = VllmEngine(resolve(str(tiny)), table={"max_num_sequences": 4, "dtype": "float32"})
    with pytest.raises(EngineDead, match=r"max_num_sequences: did you mean .*max_num_seqs"):
        await EngineRun(engine).start()
    engine = VllmEngine(resolve(str(tiny)), table={"dtype": "float33"})
    with pytest.raises(EngineDead, match=r"(?s)vLLM refused its configuration.*float33"):
        await EngineRun(engine).start()


# -- how it dies ------------------------------------------------------------------------------------


async def test_a_core_that_stands_still_is_noticed_and_ended(run: EngineRun) -> None:
    """The last test of the shared engine."""
    running = run.submit(PROMPT, greedy(900, ignore_eos=True))
    await run.until(lambda: bool(run.ids.get(running)))
    os.kill(run.core, signal.SIGSTOP)
    with pytest.raises(EngineDead, match="hangs: 1 requests inside"):
        async with asyncio.timeout(30):
            await run.engine.failed()
    await run.engine.close()
    assert not is_running(run.core)


async def test_a_start_that_is_given_up_leaves_no_process(tiny: Path) -> None:
    engine, others = VllmEngine(resolve(str(tiny)), table=SMALL), cores()
    starting = asyncio.create_task(EngineRun(engine).start())
    async with asyncio.timeout(100):
        while cores() == others:
            await asyncio.sleep(0.05)
    [core] = cores() - others
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await engine.close()
    assert not is_running(core)


async def test_the_canary_finds_an_idle_core_that_stands_still(tiny: Path) -> None:
    engine = VllmEngine(resolve(str(tiny)), table=SMALL, hang_timeout_s=2, canary_interval_s=0.5)
    try:
        run = await EngineRun(engine).start()
        os.kill(run.core, signal.SIGSTOP)
        with pytest.raises(EngineDead, match="canary had no token"):
            async with asyncio.timeout(30):
                await engine.failed()
    finally:
        await engine.close()
    assert not is_running(run.core)


# -- a real model -----------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def smollm2() -> AsyncIterator[EngineRun]:
    model = await asyncio.to_thread(resolve, "smollm2")
    engine = VllmEngine(model, slots=4, table={"max_model_len": 2048})
    try:
        yield await EngineRun(engine).start()
    finally:
        await engine.close()


async def test_the_demo_model_answers(smollm2: EngineRun) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.info.tokenizer_dir)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids, end = await smollm2.answer(prompt, greedy(40))
    assert tokenizer.decode(ids) == "The capital of France is Paris."
    assert (end.reason, end.stop_token) == ("stop", tokenizer.eos_token_id)
    assert smollm2.info.model_name == "SmolLM2-135M-Instruct"
    rest, end = await smollm2.answer(prompt, greedy(40), prior_ids=ids[:4])
    assert (ids[:4] + rest, end.reason) == (ids, "stop")
    # What the next turn is asked with: the same ids, and more. Its prefix is there already.
    _, end = await smollm2.answer([*prompt, *ids, tokenizer.eos_token_id], greedy(1))
    assert end.cached_tokens >= 32


async def test_a_killed_core_is_told_at_once(smollm2: EngineRun) -> None:
    """The last test of this engine."""
    running = smollm2.submit(PROMPT, greedy(900, ignore_eos=True))
    await smollm2.until(lambda: bool(smollm2.ids.get(running)))
    os.kill(smollm2.core, signal.SIGKILL)
    with pytest.raises(EngineDead, match="core died"):
        async with asyncio.timeout(1.5):
            await smollm2.engine.failed()
    assert running not in smollm2.ends  # another worker ends it
    await smollm2.engine.close()
    assert not is_running(smollm2.core)


# -- how its worker dies: in a process of its own, and last, since pytest keeps what the last test has logged
# (with tracebacks, and through them an engine) until after the collection of _contexts_end_here


async def test_a_killed_worker_takes_its_engine_core_along(tiny: Path) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.e2e.engine_run", str(tiny), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    while (line := await worker.stdout.readline()) != b"ready\n":
        assert line
    family = set(descendants(worker.pid))
    assert family
    worker.kill()
    await worker.wait()
    give_up = time.monotonic() + 10
    while any(map(is_running, family)) and time.monotonic() < give_up:
        await asyncio.sleep(0.02)
    assert [pid for pid in family if is_running(pid)] == []
