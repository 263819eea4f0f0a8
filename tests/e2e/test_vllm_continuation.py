"""Continuing a response equals not having stopped, on the real vLLM and a real small model.

Each case runs uninterrupted, and then once more from several cuts at the same time: what an earlier
writer had emitted goes in as ``prior_ids``, and the rest must come out as if nothing had happened. The
engine is starved on purpose: prompts are fed in parts, and its cache holds fewer tokens than the batch
may want, so that requests are preempted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import prometheus_client
import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from schemas.reply import TokenLogprobs
from schemas.sampling import Sampling, StructuredOutput
from tests.e2e.engine_run import EngineRun
from workers.engine.base import RequestEnd
from workers.engine.vllm import VllmEngine
from workers.models import resolve

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),  # the first to use the engine pays for importing vLLM, and for the model
    pytest.mark.filterwarnings("default"),  # those of torch and vLLM are not ours to heed
]

SLOTS = 8
STARVED: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_batched_tokens": 48,
    "kv_cache_memory_bytes": 28 << 20,  # about 600 tokens
}
QUESTION = "Go on with this."
TEXT = "Snow and rain, snow and rain. "  # so that answers repeat themselves, and penalties have work to do


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run() -> AsyncIterator[EngineRun]:
    model = await asyncio.to_thread(resolve, "smollm2")
    engine = VllmEngine(model, slots=SLOTS, table=STARVED)
    try:
        yield await EngineRun(engine).start()
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def tokenizer(run: EngineRun) -> Tokenizer:
    return Tokenizer.from_file(str(run.info.tokenizer_dir / "tokenizer.json"))


def asked(tokenizer: Tokenizer, question: str) -> list[int]:
    """A prompt of more tokens than the engine takes in one step."""
    turn = f"<|im_start|>user\n{TEXT * 8}{question}<|im_end|>\n<|im_start|>assistant\n"
    ids: list[int] = tokenizer.encode(turn).ids
    assert len(ids) > STARVED["max_num_batched_tokens"]
    return ids


@dataclass
class Made:
    ids: list[int]
    end: RequestEnd
    logprobs: list[TokenLogprobs] = field(default_factory=list)


async def made(
    run: EngineRun, prompt: list[int], sampling: Sampling, cuts: Iterable[list[int]]
) -> list[Made]:
    """What comes out for each list of prior ids, all submitted at once."""
    names = [run.submit(prompt, sampling, prior_ids=prior) for prior in cuts]
    await run.until(lambda: set(names) <= run.ends.keys())
    return [Made(run.ids[name], run.ends[name], run.logprobs[name]) for name in names]


def assert_goes_on(whole: Made, rest: Made, k: int) -> None:
    assert whole.ids[:k] + rest.ids == whole.ids, f"after {k}"
    assert (rest.end.reason, rest.end.code) == (whole.end.reason, None)
    assert rest.end.stop_token == (whole.end.stop_token if rest.end.reason == "stop" else None)
    assert len(rest.logprobs) == max(0, len(whole.logprobs) - k)
    for one, other in zip(whole.logprobs[k:], rest.logprobs, strict=True):
        assert other.chosen == pytest.approx(one.chosen, abs=1e-3)
        assert [value for _, value in other.top] == pytest.approx([value for _, value in one.top], abs=1e-3)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LIST = 'root ::= item ("," item)*\nitem ::= [a-z]+ "=" [0-9]+'


def greedy(max_tokens: int = 16, **more: Any) -> Sampling:
    return Sampling(max_tokens=max_tokens, temperature=0, **more)


def seeded(max_tokens: int = 16, **more: Any) -> Sampling:
    return Sampling(max_tokens=max_tokens, seed=20261122, **more)


EOS = 2
COMMA = 28  # which the answers hold, see test_a_stop_token_after_the_cut
CASES = {
    "greedy": greedy(),
    "greedy, to its own end": greedy(40),
    "repetition_penalty": greedy(repetition_penalty=1.3),
    "presence_penalty": greedy(presence_penalty=2),
    "frequency_penalty": greedy(frequency_penalty=2),
    "negative frequency_penalty, hot": seeded(frequency_penalty=-0.5, temperature=1.4),
    "all three penalties": greedy(presence_penalty=1, frequency_penalty=1, repetition_penalty=1.1),
    "seed": seeded(),
    "seed, top_p, top_k": seeded(top_p=0.9, top_k=40),
    "seed, logit_bias": seeded(logit_bias={COMMA: 3.0}),
    "JSON schema": greedy(48, structured=StructuredOutput(json_schema=json.dumps(PERSON))),
    "JSON schema, seed": seeded(48, structured=StructuredOutput(json_schema=json.dumps(PERSON))),
    "regex": greedy(32, structured=StructuredOutput(regex="[A-Z][a-z]{3,10} [0-9]{3}-[0-9]{4}")),
    "choice": seeded(32, structured=StructuredOutput(choice=("snow and ice", "snow and rain", "sunshine"))),
    "grammar": seeded(24, structured=StructuredOutput(grammar=LIST)),
    "min_tokens": greedy(24, min_tokens=20),
    "min_tokens, penalty": greedy(24, min_tokens=20, presence_penalty=0.3),
    "stop token, seed": seeded(40, stop_token_ids=(COMMA,)),
    "the end token, ignored": seeded(6, ignore_eos=True, logit_bias={EOS: 100.0}),
    "logprobs": greedy(logprobs=3),
    "logprobs, seed": seeded(logprobs=3),
    "logprobs, penalty": greedy(logprobs=0, frequency_penalty=1),
    "logprobs, schema": seeded(48, logprobs=2, structured=StructuredOutput(json_schema=json.dumps(PERSON))),
    "bad word of several tokens": greedy(bad_words=("and rain", "Snow and")),
    "bad words, seed": seeded(bad_words=("snow and", "rain", " of the")),
}


@pytest.mark.parametrize("sampling", CASES.values(), ids=CASES.keys())
async def test_what_comes_after_a_cut(run: EngineRun, tokenizer: Tokenizer, sampling: Sampling) -> None:
    prompt = asked(tokenizer, QUESTION)
    [whole] = await made(run, prompt, sampling, [[]])
    assert whole.end.code is None
    n = len(whole.ids)
    cuts = sorted({0, 1, n // 2, n - 1, n})
    for k, rest in zip(cuts, await made(run, prompt, sampling, [whole.ids[:k] for k in cuts]), strict=True):
        assert_goes_on(whole, rest, k)


async def test_the_cases_are_what_they_claim(run: EngineRun, tokenizer: Tokenizer) -> None:
    """Penalties, seed and words change what comes out: else the cuts above would prove nothing."""
    prompt = asked(tokenizer, QUESTION)
    names = [
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "bad word of several tokens",
    ]
    [plain], *others = [await made(run, prompt, CASES[name], [[]]) for name in ["greedy", *names]]
    for name, [other] in zip(names, others, strict=True):
        assert other.ids[:16] != plain.ids, name
    [stopped] = await made(run, prompt, CASES["stop token, seed"], [[]])
    assert (stopped.end.reason, stopped.end.stop_token) == ("stop", COMMA)
    [person] = await made(run, prompt, CASES["JSON schema"], [[]])
    assert set(json.loads(tokenizer.decode(person.ids))) == {"name", "age"}


async def test_replays_of_different_lengths_beside_ordinary_requests(
    run: EngineRun, tokenizer: Tokenizer
) -> None:
    """Eight slots: seeded, structured and penalized ones at different cuts, and greedy ones."""
    questions = [asked(tokenizer, f"Question {i}: what is the best of it?") for i in range(4)]
    samplings = [seeded(20), CASES["JSON schema"], greedy(20, presence_penalty=1.5), greedy(20)]
    alone = [(await made(run, prompt, s, [[]]))[0] for prompt, s in zip(questions, samplings, strict=True)]
    names = []
    for i, (prompt, sampling, whole) in enumerate(zip(questions, samplings, alone, strict=True)):
        for k in (3 + 4 * i, 0 if i % 2 else 1):
            names.append((run.submit(prompt, sampling, prior_ids=whole.ids[:k]), whole, k))
    await run.until(lambda: {name for name, _, _ in names} <= run.ends.keys())
    for name, whole, k in names:
        assert_goes_on(whole, Made(run.ids[name], run.ends[name], run.logprobs[name]), k)


async def test_a_seed_and_a_prompt_that_is_fed_in_parts(run: EngineRun, tokenizer: Tokenizer) -> None:
    """Alone, beside others that take their share of each step, and continued; never from the cache. As
    shipped, vLLM's engine core dies of this on a CPU."""
    prompt, sampling = asked(tokenizer, "What is the worst of it?"), seeded(8)
    name = run.submit(prompt, sampling, cache_salt="alone")
    await run.until(lambda: name in run.ends)
    whole = run.ids[name]
    cuts = [[], [], whole[:3]]
    names = [run.submit(prompt, sampling, prior_ids=k, cache_salt=f"{i}") for i, k in enumerate(cuts)]
    await run.until(lambda: set(names) <= run.ends.keys())
    assert [run.ids[name] for name in names] == [whole, whole, whole[3:]]
    assert all(run.ends[name].cached_tokens == 0 for name in names)


def preemptions() -> float:
    metrics = prometheus_client.REGISTRY.collect()
    return sum(
        sample.value
        for metric in metrics
        for sample in metric.samples
        if sample.name == "vllm:num_preemptions_total"
    )


async def test_a_preempted_replay(run: EngineRun, tokenizer: Tokenizer) -> None:
    """More tokens than the cache holds: vLLM throws requests out in the middle, and computes prompt and
    output anew, the forced part of it too."""
    questions = [asked(tokenizer, f"{i} {TEXT * 4}Why {i}?") for i in range(6)]
    samplings = [seeded(44, ignore_eos=True, logprobs=1), greedy(44, ignore_eos=True, presence_penalty=1.5)]
    cases = [(prompt, samplings[i % 2]) for i, prompt in enumerate(questions)]
    alone = [(await made(run, prompt, sampling, [[]]))[0] for prompt, sampling in cases]
    before = preemptions()
    names = [
        run.submit(prompt, sampling, prior_ids=whole.ids[: 42 - i])
        for i, ((prompt, sampling), whole) in enumerate(zip(cases, alone, strict=True))
    ]
    await run.until(lambda: set(names) <= run.ends.keys())
    for i, (name, whole) in enumerate(zip(names, alone, strict=True)):
        assert_goes_on(whole, Made(run.ids[name], run.ends[name], run.logprobs[name]), 42 - i)
    assert preemptions() > before


async def test_an_abort_in_the_middle_of_a_replay_frees_its_slot(
    run: EngineRun, tokenizer: Tokenizer
) -> None:
    prompt = asked(tokenizer, "Go on.")
    prior = [COMMA, COMMA + 1] * 150
    sampling = seeded(400, ignore_eos=True)
    names = [run.submit(prompt, sampling, prior_ids=prior) for _ in range(SLOTS)]
    late = run.submit(prompt, greedy(3))
    await run.until_load(lambda load: load.kv_cache_usage > 0.7)  # with the prompts alone it holds less
    for name in names:
        run.engine.abort(name)
    await run.until(lambda: late in run.ends)
    assert run.ends[late].reason is not None
    assert not run.ids.keys() & set(names)
    assert not run.ends.keys() & set(names)
    assert run.engine.load().running + run.engine.load().waiting == 0


async def test_what_the_engine_cannot_have_made_is_not_continued(
    run: EngineRun, tokenizer: Tokenizer
) -> None:
    """An end token inside of what was emitted ends vLLM's replay: no other response's tokens come out."""
    prompt = asked(tokenizer, "Go on.")
    [rest] = await made(run, prompt, seeded(20), [[COMMA, EOS, COMMA]])
    assert (rest.ids, rest.end.reason, rest.end.code) == ([], None, "engine_failed")
    [fine] = await made(run, prompt, greedy(3), [[]])
    assert len(fine.ids) == 3
