"""Messages to prompt ids: the chat template, the extension of earlier turns by ids, and what fits.

Pure, and slow for long prompts: callers build those in a thread (``tokenizers`` releases the GIL).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from gateway.calling import rendering
from gateway.context import Context, split_system
from gateway.generation import ChatMessage, Generation
from gateway.output.manner import thinking_at
from gateway.tokenizer import ChatTokenizer
from schemas.errors import HeadraceError
from schemas.ids import ModelToken
from schemas.job import OutputShape
from schemas.sampling import Sampling

Render = Callable[[list[ChatMessage]], str]

# What a prompt takes of its room after rounds were dropped. Each drop costs the prefix cache: the next turns
# shall extend the ids again.
FILLED = 0.75
SHORT = 1000  # characters, which take 0.3 ms


@dataclass(frozen=True, slots=True)
class Prompt:
    """``context`` is what was remembered, less the rounds that did not fit: what ``ids`` continue. ``shape``:
    how what comes behind them is read."""

    ids: tuple[int, ...]
    sampling: Sampling
    context: Context
    shape: OutputShape | None = None
    rendering: str = ""  # of the tools and options that the chat template was given


def is_short(generation: Generation, context: Context) -> bool:
    """Whether it may be built at once. A thread costs 0.1 ms, and while the event loop is busy it waits for
    the interpreter, up to 5 ms (``sys.getswitchinterval``): the most that a short prompt would wait for."""
    if generation.tools or generation.prompt_ids:
        return False
    said = (*context.messages(), *generation.messages)
    return sum(len(message.content) for message in said) <= SHORT


def build(
    tokenizer: ChatTokenizer,
    model: ModelToken,
    max_model_len: int,
    generation: Generation,
    context: Context,
    *,
    default_max_tokens: int,
) -> Prompt:
    """Oldest rounds of the context are dropped whole where the prompt does not fit. Raises ``HeadraceError``:
    context_length_exceeded, and invalid_request where the template refuses."""
    room = max_model_len - room_wanted(generation, max_model_len, default_max_tokens)
    ids, text = _encode(tokenizer, model, generation, context)
    if len(ids) > room:
        while context.turns and len(ids) > room * FILLED:
            if len(ids) <= room and len(context.turns) == 1:
                break  # to forget the last round would make room for nothing better
            context = context.without_oldest()
            ids, text = _encode(tokenizer, model, generation, context)
    sampling = fit(generation, len(ids), max_model_len, default_max_tokens)
    return Prompt(tuple(ids), sampling, context, _shape(generation, text), rendering(generation))


def _shape(generation: Generation, prompt: str) -> OutputShape | None:
    shape = generation.shape
    if shape is None or not shape.thinking:
        return shape
    thinking = thinking_at(prompt, shape.thinking)
    if not (thinking or shape.tool_format):
        return None
    return msgspec.structs.replace(shape, thinking=thinking)


def room_wanted(generation: Generation, max_model_len: int, default_max_tokens: int) -> int:
    """Tokens for which old rounds make room: an answer cut short is worse than a forgotten round. Where the
    client named no number, a quarter of a small model's context is enough."""
    sampling = generation.sampling
    if generation.max_tokens_given:
        return sampling.max_tokens
    return max(1, min(default_max_tokens, max_model_len // 4), sampling.min_tokens)


def fit(generation: Generation, prompt_tokens: int, max_model_len: int, default_max_tokens: int) -> Sampling:
    """Sampling with a ``max_tokens`` that fits: the client's, or else the default or what room there is."""
    room = max_model_len - prompt_tokens
    sampling = generation.sampling
    if prompt_tokens == 0:
        raise HeadraceError("invalid_value", "The prompt is empty: send some text.", param="input")
    if room < 1:
        raise HeadraceError(
            "context_length_exceeded",
            f"The prompt has {prompt_tokens} tokens and this model's context length is {max_model_len}: "
            "shorten the input.",
            param="input",
        )
    if not generation.max_tokens_given:
        fitted = min(default_max_tokens, room)
        return msgspec.structs.replace(
            sampling, max_tokens=fitted, min_tokens=min(sampling.min_tokens, fitted)
        )
    if sampling.max_tokens > room:
        raise HeadraceError(
            "context_length_exceeded",
            f"The prompt has {prompt_tokens} tokens and {sampling.max_tokens} were asked for, "
            f"{prompt_tokens + sampling.max_tokens} together; this model's context is {max_model_len}: "
            "shorten the input or ask for fewer tokens.",
            param="max_output_tokens",
        )
    return sampling


def _encode(
    tokenizer: ChatTokenizer, model: ModelToken, generation: Generation, context: Context
) -> tuple[list[int], str]:
    """And the text that they end in."""
    if generation.prompt_ids:
        return list(generation.prompt_ids), ""
    if generation.api == "completions":
        text = "".join(message.content for message in generation.messages)
        return tokenizer.encode(text, add_special_tokens=generation.special_tokens), text
    render = partial(tokenizer.render, options=generation.template_options, tools=generation.tools)
    system, said = split_system(generation.messages)
    same_system = system is None or system == context.system
    same_rendering = context.rendering == rendering(generation)
    if context.ids and context.model == model and same_system and same_rendering:
        suffix = extension(render, context, said)
        if suffix is not None:
            return [*context.ids, *tokenizer.encode(context.tail + suffix)], suffix
    if system is not None:
        context = msgspec.structs.replace(context, system=system)
    text = render([*context.messages(), *said], speaker=generation.speaker)
    return tokenizer.encode(text), text


def extension(render: Render, context: Context, said: tuple[ChatMessage, ...]) -> str | None:
    """The text between the last answer's end and where the assistant speaks again: what the template puts
    behind an answer, and the new turn. None where the template shows earlier turns otherwise than it did
    (it drops the reasoning of old answers, moves the system message, …)."""
    earlier = context.messages()
    shown = earlier.pop()
    answer = context.turns[-1].answer
    try:
        head = render(earlier)
    except HeadraceError:  # it takes no conversation that ends so
        return None
    # As the model wrote it, or as the template writes reasoning and calls: what is in the ids must show.
    for last in (ChatMessage("assistant", answer), shown) if shown.content != answer else (shown,):
        try:
            whole = render([*earlier, last, *said])
        except HeadraceError:
            continue
        if whole.startswith(head) and (suffix := _behind(whole[len(head) :], answer)) is not None:
            return suffix
    return None


def _behind(rest: str, answer: str) -> str | None:
    for shown in (answer, answer.strip()):  # many templates trim what was said
        if rest.startswith(shown) and (shown or not answer):
            return rest[len(shown) :]
    return None
