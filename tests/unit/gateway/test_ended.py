"""Ended responses are kept for a while, within a number and a size, and without their prompts."""

from __future__ import annotations

import msgspec

from gateway.ended import KEEP_S, MAX_RESPONSES, EndedResponses
from gateway.generation import Started, Text
from gateway.live import Live
from schemas.ids import Fence, new_response_id
from schemas.reply import Finished, TokenLogprobs, Usage
from tests.unit.gateway.test_live import AT, BYTES, STARTED, Owner, ids_of, make


def ended(text: str = "hello there", logprobs: int | None = None) -> Live:
    model, _ = make(logprobs=logprobs)
    shown = msgspec.structs.replace(model.job.presentation, user_text="a long prompt")
    job = msgspec.structs.replace(model.job, response=new_response_id(), presentation=shown)
    live = Live(job, BYTES, Owner())
    live.feed(1, STARTED, AT)
    ids = tuple(ids_of(text))
    one = TokenLogprobs(-1.0, tuple((n, -2.0) for n in range(logprobs or 0)))
    told = (one,) * len(ids) if logprobs is not None else None
    usage = Usage(prompt_tokens=3, completion_tokens=len(ids))
    live.feed(
        2, Finished(fence=Fence(1), total=len(ids), reason="stop", ids=ids, usage=usage, logprobs=told), AT
    )
    return live


async def test_what_is_kept_reads_the_same_and_has_no_prompt() -> None:
    kept, live = EndedResponses(), ended("hello there", logprobs=1)
    reader = live.reader()  # attached before it was kept: it goes on with the original
    kept.keep(live, 0.0)
    found = kept.find(live.response_id)
    assert found is not None
    assert (found.text, found.ids, found.end, found.tenant) == (live.text, live.ids, live.end, live.tenant)
    assert found.log.logprobs == live.log.logprobs
    updates = await found.reader().next()
    assert updates == await reader.next()
    assert [type(update) for update in updates[:2]] == [Started, Text]
    assert (found.job.prompt_ids, found.job.presentation.user_text) == ((), "")
    assert found.attended
    assert (live.job.prompt_ids, live.job.presentation.user_text) == ((1, 2, 3), "a long prompt")
    assert kept.find(new_response_id()) is None


def test_forgotten_after_a_time_though_nothing_new_comes() -> None:
    kept, old, young = EndedResponses(), ended(), ended()
    kept.keep(old, 100.0)
    kept.keep(young, 101.0)
    kept.forget(100.5 + KEEP_S)
    assert (kept.find(old.response_id), len(kept)) == (None, 1)
    kept.forget(101.5 + KEEP_S)
    assert len(kept) == 0


def test_bounded_in_number() -> None:
    kept, live = EndedResponses(), ended()
    for _ in range(MAX_RESPONSES + 1):
        last = ended("x")
        kept.keep(last, 0.0)
    assert len(kept) == MAX_RESPONSES
    assert kept.find(last.response_id) is not None
    assert kept.find(live.response_id) is None


def test_bounded_in_bytes() -> None:
    small, large = ended("x"), ended("many words " * 50, logprobs=20)
    assert large.kept_bytes > 20 * 100 * len(large.ids)  # what 20 alternatives a token take
    kept = EndedResponses(max_bytes=large.kept_bytes + 2 * small.kept_bytes)
    for live in (small, large):
        kept.keep(live, 0.0)
    assert len(kept) == 2
    another = ended("many words " * 50, logprobs=20)
    kept.keep(another, 1.0)
    assert kept.find(large.response_id) is None
    assert kept.find(another.response_id) is not None
    kept.keep(ended("many words " * 200, logprobs=20), 2.0)  # larger than all the room
    assert len(kept) == 0
    kept.keep(small, 3.0)  # nothing is counted twice or left behind
    assert kept.find(small.response_id) is not None
