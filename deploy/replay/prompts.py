"""A stored prompt for a model with another tokenizer: the messages it was rendered from, rendered anew.

A job holds its prompt as ids, and of the messages only its own turn's. The earlier ones stand in the ids: the
old template, asked with marks for messages, shows what stands between two of them. Nothing rests on that
reading: messages count only where the old template makes this very prompt of them. Pure, and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

from gateway import prompt
from gateway.calling import settle
from gateway.catalog import ModelCard
from gateway.context import NOTHING, said_in
from gateway.generation import ChatMessage, Generation
from gateway.tokenizer import ChatTokenizer
from schemas.errors import HeadraceError
from schemas.job import Job
from schemas.sampling import Sampling

Render = Callable[[list[ChatMessage]], str]

_MARKS = tuple(f"\ue000{n}\ue001" for n in range(4))  # of a private use area: no template writes them


def for_tokenizer(
    job: Job, sampling: Sampling, old: ChatTokenizer, new: ChatTokenizer, card: ModelCard
) -> prompt.Prompt:
    """Raises ``HeadraceError``, with what can be done: where the messages are not known for sure, and where
    they or the parameters do not suit the new model."""
    for name, empty in (("stop_token_ids", "[]"), ("logit_bias", "null"), ("allowed_token_ids", "null")):
        if getattr(sampling, name):
            problem = f"{name} holds token ids of {job.model_name}: change it, as by --set {name}={empty}."
            raise HeadraceError("unsupported_parameter", problem)
    if job.presentation.rendering:
        raise _refused("its prompt has tools or template options in it, which the job does not keep")
    plain = job.presentation.api == "completions"
    messages, special = _plain(job, old) if plain else (_messages(job, old), True)
    asked = Generation(
        api=job.presentation.api,
        tenant=job.tenant,
        model=card.name,
        messages=messages,
        sampling=sampling,
        special_tokens=special,
    )
    asked = settle(asked, new.manner, "", can_force=card.structured_output)
    return prompt.build(
        new, card.token, card.max_model_len, asked, NOTHING, default_max_tokens=sampling.max_tokens
    )


def _plain(job: Job, old: ChatTokenizer) -> tuple[tuple[ChatMessage, ...], bool]:
    """And whether the tokenizer had put its special tokens around it."""
    text = old.detokenizer.decode(job.prompt_ids)
    for special in (True, False):
        if old.encode(text, add_special_tokens=special) == list(job.prompt_ids):
            return (ChatMessage("user", text),), special
    raise _refused("its prompt is no text: other tokens come of encoding it again")


def _messages(job: Job, old: ChatTokenizer) -> tuple[ChatMessage, ...]:
    own = list(said_in(job))
    try:
        if old.encode(old.render(own)) == list(job.prompt_ids):
            return tuple(own)
    except HeadraceError:  # the template takes no such messages alone: there were some before
        pass
    # Half a character, at the end of an answer that was cut, is what its client was shown: U+FFFD.
    text = b"".join(map(old.detokenizer.token_bytes, job.prompt_ids)).decode(errors="replace")
    messages = explain(text, old.render)
    if messages is None:
        raise _refused("the messages that its prompt was made of cannot be told for sure")
    return messages


def explain(text: str, render: Render) -> tuple[ChatMessage, ...] | None:
    """The messages of which ``render`` makes ``text``; without a system message where the template adds this
    very one by itself. None: it cannot be told."""
    for with_system in (False, True):
        messages = _read(text, render, with_system)
        if messages is not None and _is(text, render, messages):
            return tuple(messages)
    return None


def _read(text: str, render: Render, with_system: bool) -> list[ChatMessage] | None:
    """Between the marks of a system message and three turns stands what the template writes there."""
    system, first, answer, second = _MARKS
    shown = [ChatMessage("user", first), ChatMessage("assistant", answer), ChatMessage("user", second)]
    if with_system:
        shown.insert(0, ChatMessage("system", system))
    try:
        probe = render(shown)
    except HeadraceError:
        return None
    head, rest, to_answer, to_user, tail = "", probe, "", "", ""
    behind_system = ""
    if with_system:
        head, _, rest = rest.partition(system)
        behind_system, _, rest = rest.partition(first)
    else:
        head, _, rest = rest.partition(first)
    to_answer, _, rest = rest.partition(answer)
    to_user, _, tail = rest.partition(second)
    if not (to_answer and to_user and text.startswith(head) and text.endswith(tail)):
        return None
    body = text[len(head) : len(text) - len(tail)]
    messages: list[ChatMessage] = []
    if with_system:
        said, found, body = body.partition(behind_system)
        if not (behind_system and found):
            return None
        messages.append(ChatMessage("system", said))
    messages += _turns(body, to_answer, to_user)
    return messages


def _turns(body: str, to_answer: str, to_user: str) -> Iterator[ChatMessage]:
    for role, end in cycle((("user", to_answer), ("assistant", to_user))):
        said, more, body = body.partition(end)
        yield ChatMessage(role, said)
        if not more:
            return


def _is(text: str, render: Render, messages: list[ChatMessage]) -> bool:
    try:
        return render(messages) == text
    except HeadraceError:
        return False


def _refused(why: str) -> HeadraceError:
    return HeadraceError(
        "unsupported_parameter", f"{why[0].upper()}{why[1:]}: it runs on models with the same tokenizer only."
    )
