"""A prompt of one tokenizer, for another."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deploy.replay.prompts import explain, for_tokenizer
from gateway.generation import ChatMessage
from gateway.tokenizer import ChatTokenizer
from schemas.errors import HeadraceError
from schemas.job import Job, Presentation
from schemas.sampling import Sampling
from tests.unit.deploy.replay.samples import JOB
from tests.unit.deploy.replay.test_copies import CARD
from tests.unit.gateway.tokenizers_built import byte_fallback, byte_level

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are tiny.<|im_end|>\n{% endif %}" + CHATML
)
LLAMA = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
DROPS_THE_FIRST = "{% for m in messages[1:] %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def chat(template: str, tokenizer: Tokenizer | None = None) -> ChatTokenizer:
    return ChatTokenizer(tokenizer or byte_level(), template, {})


def talk(*texts: str, system: str | None = None) -> list[ChatMessage]:
    messages = [ChatMessage("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(texts)]
    return messages if system is None else [ChatMessage("system", system), *messages]


TEXT = st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=20).map(str.strip)
CHATS = [chat(template) for template in (CHATML, WITH_DEFAULT, LLAMA)]


@given(
    st.sampled_from(CHATS),
    st.lists(TEXT, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2 == 1),
    st.none() | TEXT,
)
def test_what_is_read_makes_the_same_prompt(
    tokenizer: ChatTokenizer, texts: list[str], system: str | None
) -> None:
    prompt = tokenizer.render(talk(*texts, system=system))
    found = explain(prompt, tokenizer.render)
    assert found is not None
    assert tokenizer.render(found) == prompt


@pytest.mark.parametrize("template", [CHATML, WITH_DEFAULT, LLAMA])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_messages_come_out_as_they_went_in(template: str, system: str | None) -> None:
    said = talk("Hi", "Hello!\nYes?", "What?", system=system)
    render = chat(template).render
    assert explain(render(said), render) == tuple(said)


def test_what_cannot_be_told_is_not_guessed() -> None:
    render = chat(CHATML).render
    assert explain("Once upon a time", render) is None
    assert explain(render([*talk("a"), ChatMessage("tool", "42")]) + "x", render) is None
    dropping = chat(DROPS_THE_FIRST).render
    assert explain(dropping(talk("a", "b", "c")), dropping) is None


def job_of(tokenizer: ChatTokenizer, messages: list[ChatMessage], shown: Presentation) -> Job:
    ids = tuple(tokenizer.encode(tokenizer.render(messages)))
    return msgspec.structs.replace(JOB, prompt_ids=ids, presentation=shown)


ALL_OF_IT = replace(CARD, max_model_len=4096)
SAMPLING = Sampling(max_tokens=16)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (talk("Hello world"), Presentation(api="responses", user_text="Hello world")),
        (
            talk("Hello", system="Be brief."),
            Presentation(api="chat", input=(("system", "Be brief."), ("user", "Hello"))),
        ),
        (talk("Hello", "Hi", "world"), Presentation(api="responses", user_text="world")),  # earlier turns
    ],
)
def test_a_chat_is_rendered_by_the_other_model_s_template(
    said: list[ChatMessage], shown: Presentation
) -> None:
    old, new = chat(WITH_DEFAULT), chat(CHATML, byte_fallback())
    built = for_tokenizer(job_of(old, said, shown), SAMPLING, old, new, ALL_OF_IT)
    assert list(built.ids) == new.encode(new.render(said))
    assert built.sampling == SAMPLING


def test_plain_text_is_encoded_again() -> None:
    old, new = chat(CHATML), chat(CHATML, byte_fallback())
    ids = tuple(old.encode("The quick brown fox"))
    job = msgspec.structs.replace(JOB, prompt_ids=ids, presentation=Presentation(api="completions"))
    built = for_tokenizer(job, SAMPLING, old, new, ALL_OF_IT)
    assert list(built.ids) == new.encode("The quick brown fox", add_special_tokens=True)
    letters = tuple(byte_level().token_to_id(letter) for letter in "quick")
    assert len(old.encode("quick")) < len(letters)
    odd = msgspec.structs.replace(job, prompt_ids=letters)
    with pytest.raises(HeadraceError, match="no text"):
        for_tokenizer(odd, SAMPLING, old, new, ALL_OF_IT)


@pytest.mark.parametrize(
    ("sampling", "shown", "problem"),
    [
        (Sampling(max_tokens=1, logit_bias={5: 1}), Presentation(api="chat"), "--set logit_bias=null"),
        (SAMPLING, Presentation(api="chat", rendering="0123"), "has tools or template options"),
        (Sampling(max_tokens=4096), Presentation(api="chat", user_text="a"), "asked for"),
    ],
)
def test_what_is_not_known_or_does_not_fit_is_refused(
    sampling: Sampling, shown: Presentation, problem: str
) -> None:
    old = chat(CHATML)
    with pytest.raises(HeadraceError, match=problem):
        for_tokenizer(job_of(old, talk("a"), shown), sampling, old, chat(LLAMA), ALL_OF_IT)


def test_a_template_that_takes_no_system_message() -> None:
    old = chat(NO_SYSTEM)
    assert explain(old.render(talk("a", "b", "c")), old.render) == tuple(talk("a", "b", "c"))
