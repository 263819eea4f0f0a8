"""A conversation's next prompt: earlier turns' own ids, then the template's text; and what is remembered."""

# ruff: noqa: E501  (chat templates are quoted as they are)

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from broker.log_reader import LogReader
from gateway.context import Context, Turn, fold, fold_found, present, said_in
from gateway.generation import ChatMessage, Generation
from gateway.prompt import Prompt, build, fit
from gateway.tokenizer import ChatTokenizer
from schemas.errors import HeadraceError
from schemas.ids import Fence, GatewayId, ModelToken, ResponseId, SessionToken, TenantId, WorkerId
from schemas.job import Job, Presentation
from schemas.reply import Closed, Failed, Finished, Started, Tokens, Usage
from schemas.sampling import Sampling
from tests.unit.gateway.tokenizers_built import byte_level
from workers.engine.sim_tokenizer import write_tokenizer

# HuggingFaceTB/SmolLM2-135M-Instruct, tokenizer_config.json
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
THINKING = (  # drops the reasoning of all answers but a last one, as Qwen 3 does
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{{ message.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MODEL = ModelToken("m")
JOB = Job(
    response=ResponseId("resp_01JD0000000000000000000000"),
    tenant=TenantId("t"),
    session=SessionToken("s"),
    gateway=GatewayId("gw"),
    model=MODEL,
    model_name="m",
    prompt_ids=(1, 2, 3),
    sampling=Sampling(max_tokens=100),
    presentation=Presentation(api="responses", user_text="hi"),
    created_unix_ms=1,
    deadline_unix_ms=2,
)


def chat(template: str) -> ChatTokenizer:
    return ChatTokenizer(
        byte_level(), template, {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
    )


@pytest.fixture(params=["smollm2", "llama3", "sim"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> ChatTokenizer:
    if request.param == "sim":
        folder, _ = write_tokenizer(tmp_path, 4096)
        return ChatTokenizer.load(folder)
    return chat({"smollm2": SMOLLM2, "llama3": LLAMA3}[request.param])


def asking(*messages: ChatMessage, max_tokens: int = 10, given: bool = True) -> Generation:
    sampling = Sampling(max_tokens=max_tokens)
    return Generation("responses", TenantId("t"), "", messages, sampling, max_tokens_given=given)


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def log_of(ids: list[int], end: Finished | Closed | Failed | None = None) -> LogReader:
    reader = LogReader()
    reader.feed(1, Started(attempt=1, worker=WorkerId("w")))
    reader.feed(2, Tokens(fence=Fence(1), offset=0, ids=tuple(ids)))
    usage = Usage(prompt_tokens=3, completion_tokens=len(ids))
    finished = Finished(fence=Fence(1), total=len(ids), reason="stop", ids=tuple(ids), usage=usage)
    reader.feed(3, end or finished)
    return reader


def take_turn(
    tokenizer: ChatTokenizer, context: Context, question: str, answer_ids: list[int], rounds: int = 10
) -> tuple[tuple[int, ...], bool, Context]:
    built = build(tokenizer, MODEL, 4096, asking(user(question)), context, default_max_tokens=10)
    text, messages, _ = present((user(question),))
    presentation = Presentation(api="responses", user_text=text, input=messages)
    job = msgspec.structs.replace(JOB, prompt_ids=built.ids, presentation=presentation)
    folded = fold(built.context, job, log_of(answer_ids), tokenizer.detokenizer, rounds=rounds)
    assert folded is not None
    return built.ids, extends(built, context), folded


def extends(built: Prompt, context: Context) -> bool:
    """The ids begin with the earlier turns' own."""
    return bool(context.ids) and built.ids[: len(context.ids)] == context.ids


def test_turns_extend_the_ids_exactly(tokenizer: ChatTokenizer) -> None:
    """With completions that no encoder would make: letter by letter, spaces around, half a character."""
    spelled = [byte for word in (" He", "llo ", "wo") for c in word for byte in tokenizer.encode(c)]
    half = tokenizer.encode("é")[:1] if len(tokenizer.encode("é")) > 1 else tokenizer.encode("x")
    answers = [spelled, tokenizer.encode("你好")[:-1] + half, tokenizer.encode("\n done \n"), []]
    context, before, answered = Context(), (), []
    for question, answer in zip(["My name is Ada.", "Who am I?", "And now?", "Last?"], answers, strict=True):
        ids, extended, context = take_turn(tokenizer, context, question, answer)
        assert extended == bool(before)
        assert ids[: len(before) + len(answered)] == (*before, *answered)
        if before:
            new = tokenizer.detokenizer.decode(ids[len(before) + len(answered) :])
            assert question in new
            assert "name" not in new
        before, answered = ids, answer
    assert [turn.said[0][1] for turn in context.turns] == [
        "My name is Ada.",
        "Who am I?",
        "And now?",
        "Last?",
    ]


def test_extension_of_plain_text_equals_a_rendering_from_scratch(tokenizer: ChatTokenizer) -> None:
    context, history = Context(), []
    for question, answer in [("Hello", "Hi there"), ("What?", "That."), ("Bye", "Bye")]:
        ids, _, context = take_turn(tokenizer, context, question, tokenizer.encode(answer))
        history.append(user(question))
        assert tokenizer.encode(tokenizer.render(history)) == list(ids)
        history.append(ChatMessage("assistant", answer))


def test_a_template_that_rewrites_old_answers_is_rendered_again() -> None:
    tokenizer = chat(THINKING)
    _, _, context = take_turn(tokenizer, Context(), "2+2?", tokenizer.encode("<think>hm</think>\n4"))
    ids, extended, context = take_turn(tokenizer, context, "sure?", tokenizer.encode("yes"))
    assert not extended
    assert "hm" not in tokenizer.detokenizer.decode(ids)
    ids, extended, _ = take_turn(tokenizer, context, "really?", [])
    assert extended  # the ids are the rewritten ones by now
    assert "hm" not in tokenizer.detokenizer.decode(ids)


def test_system_message_kept_and_changed(tokenizer: ChatTokenizer) -> None:
    system = ChatMessage("system", "Be brief.")
    text, messages, _ = present((system, user("hello")))
    first = build(tokenizer, MODEL, 4096, asking(system, user("hello")), Context(), default_max_tokens=10)
    presentation = Presentation(api="responses", user_text=text, input=messages)
    job = msgspec.structs.replace(JOB, prompt_ids=first.ids, presentation=presentation)
    assert said_in(job) == (system, user("hello"))
    context = fold(first.context, job, log_of(tokenizer.encode("hi")), tokenizer.detokenizer, rounds=10)
    assert context is not None
    assert context.system == "Be brief."
    for same in ((user("again"),), (system, user("again"))):
        built = build(tokenizer, MODEL, 4096, asking(*same), context, default_max_tokens=10)
        assert extends(built, context)
    changed = ChatMessage("developer", "Be long.")
    built = build(tokenizer, MODEL, 4096, asking(changed, user("again")), context, default_max_tokens=10)
    assert not extends(built, context)
    text = tokenizer.detokenizer.decode(built.ids)
    assert "Be long." in text
    assert "Be brief." not in text
    assert "hello" in text


def test_another_model_is_rendered_from_text(tokenizer: ChatTokenizer) -> None:
    spelled = [id_ for char in "hi the" for id_ in tokenizer.encode(char)]  # no encoder would
    _, _, context = take_turn(tokenizer, Context(), "hello", spelled)
    other = build(tokenizer, ModelToken("other"), 4096, asking(user("x")), context, default_max_tokens=10)
    assert not extends(other, context)
    assert "hello" in tokenizer.detokenizer.decode(other.ids)


def test_a_stop_string_cuts_the_ids_where_the_text_ends(tokenizer: ChatTokenizer) -> None:
    answer = tokenizer.encode("fine thanks.\nUser: what")
    presentation = Presentation(api="responses", user_text="how are you", stop=("\nUs",))
    first = build(tokenizer, MODEL, 4096, asking(user("how are you")), Context(), default_max_tokens=10)
    job = msgspec.structs.replace(JOB, prompt_ids=first.ids, presentation=presentation)
    unclosed = log_of(answer)  # its gateway saw the stop string and died before it could close the log
    unclosed.end = None
    for log in (log_of(answer), unclosed):
        context = fold(Context(), job, log, tokenizer.detokenizer, rounds=10)
        assert context is not None
        assert context.turns[0].answer == "fine thanks."
        following = build(tokenizer, MODEL, 4096, asking(user("ok")), context, default_max_tokens=10)
        assert extends(following, context)
        assert "User" not in tokenizer.detokenizer.decode(following.ids)
        assert "fine thanks." in tokenizer.detokenizer.decode(following.ids)


def test_oldest_rounds_are_dropped_whole(tokenizer: ChatTokenizer) -> None:
    context = Context()
    lengths = []
    for n in range(20):
        _, extended, context = take_turn(tokenizer, context, f"question {n}", tokenizer.encode("a"), rounds=4)
        lengths.append(len(context.turns))
        assert extended == (n > 0 and (n < 7 or n % 3 != 1))
        assert [turn.said[0][1] for turn in context.turns] == [
            f"question {k}" for k in range(n + 1 - lengths[-1], n + 1)
        ]
    assert lengths == [1, 2, 3, 4, 5, 6, 4, 5, 6, 4, 5, 6, 4, 5, 6, 4, 5, 6, 4, 5]


def test_rounds_that_do_not_fit_are_dropped_and_a_turn_that_does_not_is_refused(
    tokenizer: ChatTokenizer,
) -> None:
    context = Context(turns=tuple(Turn((("user", f"number {n} " * 20),), "ok") for n in range(10)))
    asked = asking(user("and now?"))
    whole = build(tokenizer, MODEL, 10_000, asked, context, default_max_tokens=10)
    assert len(whole.context.turns) == 10
    fitted = build(tokenizer, MODEL, len(whole.ids), asked, context, default_max_tokens=10)
    assert 5 <= len(fitted.context.turns) <= 7
    assert len(fitted.ids) <= 0.75 * (len(whole.ids) - 10)
    again = fitted.context  # the next turns extend what is left, without another drop
    for n in range(2):
        again = msgspec.structs.replace(again, turns=(*again.turns, Turn((("user", f"{n}"),), "ok")))
        assert build(tokenizer, MODEL, len(whole.ids), asked, again, default_max_tokens=10).context == again
    with pytest.raises(HeadraceError, match="context_length_exceeded"):
        build(tokenizer, MODEL, 20, asking(user("long " * 50)), Context(), default_max_tokens=10)


@pytest.mark.parametrize(
    ("min_tokens", "max_model_len", "default", "kept_free"),
    [(0, 4000, 512, 512), (0, 400, 512, 100), (0, 400, 50, 50), (150, 400, 50, 150)],
)
def test_old_rounds_make_room_for_an_answer_of_no_named_length(
    tokenizer: ChatTokenizer, min_tokens: int, max_model_len: int, default: int, kept_free: int
) -> None:
    said = "word " * (max_model_len // 60)
    context = Context(turns=tuple(Turn((("user", f"{n} {said}"),), "ok") for n in range(60)))
    sampling = Sampling(max_tokens=max(default, min_tokens), min_tokens=min_tokens)
    question = Generation("responses", TenantId("t"), "", (user("now?"),), sampling, max_tokens_given=False)
    built = build(tokenizer, MODEL, max_model_len, question, context, default_max_tokens=default)
    room = max_model_len - len(built.ids)
    assert room >= kept_free
    assert built.sampling.max_tokens == min(default, room)
    assert 0 < len(built.context.turns) < 60
    one_more = msgspec.structs.replace(context, turns=context.turns[-len(built.context.turns) - 1 :])
    whole = build(tokenizer, MODEL, 1 << 20, question, one_more, default_max_tokens=default)
    room = max_model_len - kept_free
    assert len(whole.ids) > 0.75 * room  # no round was dropped without need


def test_the_last_round_is_kept_where_it_fits(tokenizer: ChatTokenizer) -> None:
    context = Context(turns=tuple(Turn((("user", f"number {n} " * 20),), "ok") for n in range(2)))
    asked = asking(user("and now? " * 60))
    one = msgspec.structs.replace(context, turns=context.turns[1:])
    just = len(build(tokenizer, MODEL, 10_000, asked, one, default_max_tokens=10).ids) + 10
    assert build(tokenizer, MODEL, just, asked, context, default_max_tokens=10).context == one
    assert build(tokenizer, MODEL, just - 1, asked, context, default_max_tokens=10).context.turns == ()


def test_a_found_turn_that_ran_without_the_memory_forgets_nothing(tokenizer: ChatTokenizer) -> None:
    _, _, context = take_turn(tokenizer, Context(), "My name is Ada.", tokenizer.encode("Hello Ada"))
    alone = build(tokenizer, MODEL, 4096, asking(user("Hi")), Context(), default_max_tokens=10)
    presentation = Presentation(api="responses", user_text="Hi", stop=("!",))
    job = msgspec.structs.replace(JOB, prompt_ids=alone.ids, presentation=presentation)
    answer = log_of(tokenizer.encode("Hey! you"))
    folded = fold_found(context, job, answer, tokenizer.detokenizer, rounds=10)
    assert folded is not None
    assert [turn.answer for turn in folded.turns] == ["Hello Ada", "Hey"]
    following = build(tokenizer, MODEL, 4096, asking(user("Who am I?")), folded, default_max_tokens=10)
    text = tokenizer.detokenizer.decode(following.ids)
    assert [text.count(said) for said in ("My name is Ada.", "Hello Ada", "Hi", "Hey", "Who am I?")] == [
        1
    ] * 5


def test_a_found_turn_that_ran_with_the_memory_keeps_its_exact_ids(tokenizer: ChatTokenizer) -> None:
    _, _, context = take_turn(tokenizer, Context(), "My name is Ada.", tokenizer.encode("Hello Ada"))
    for remembered in (context, Context()):  # it may have run out since
        built = build(tokenizer, MODEL, 4096, asking(user("Hi")), remembered, default_max_tokens=10)
        presentation = Presentation(api="responses", user_text="Hi")
        job = msgspec.structs.replace(JOB, prompt_ids=built.ids, presentation=presentation)
        answer = tokenizer.encode("Hey")
        folded = fold_found(remembered, job, log_of(answer), tokenizer.detokenizer, rounds=10)
        assert folded is not None
        assert folded.ids == (*built.ids, *answer)


def test_limits_tell_both_numbers() -> None:
    assert fit(asking(user("x"), given=False), 90, 100, 512).max_tokens == 10
    assert fit(asking(user("x"), given=False), 10, 1000, 512).max_tokens == 512
    assert fit(asking(user("x"), max_tokens=10), 90, 100, 512).max_tokens == 10
    with pytest.raises(HeadraceError, match=r"91 tokens .* 10 .* 101 .* 100"):
        fit(asking(user("x"), max_tokens=10), 91, 100, 512)
    with pytest.raises(HeadraceError, match=r"100 tokens .* 100"):
        fit(asking(user("x"), given=False), 100, 100, 512)
    with pytest.raises(HeadraceError, match="empty"):
        fit(asking(user("x")), 0, 100, 512)


@pytest.mark.parametrize(
    ("end", "ids", "remembered"),
    [
        (Failed(fence=Fence(1), code="engine_failed", message="x"), "half an ans", False),
        (Closed(reason="cancelled"), "half an ans", True),
        (Closed(reason="cancelled"), "", False),
        (Closed(reason="deadline"), "half", False),
    ],
)
def test_what_is_remembered(end: Closed | Failed, ids: str, remembered: bool) -> None:
    tokenizer = chat(SMOLLM2)
    folded = fold(Context(), JOB, log_of(tokenizer.encode(ids), end), tokenizer.detokenizer, rounds=10)
    assert (folded is not None) == remembered
    if folded is not None:
        assert folded.turns[0].answer == ids
