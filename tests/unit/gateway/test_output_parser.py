"""Reasoning and tool calls in a model's text: each format, cut anywhere."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.output.parser import OutputParser
from gateway.output.pieces import Call, CallClosed, Item, Piece, Said, Thought, gather
from schemas.job import OutputShape

TOOLS = (("get_weather", ("city",)), ("add", ()))
WEATHER = Call("get_weather", 0, '{"city": "Paris"}', closed=True)


def read(shape: OutputShape, parts: list[str]) -> list[Piece]:
    parser = OutputParser(shape)
    pieces = [piece for part in parts for piece in parser.push(part)]
    return [*pieces, *parser.finish()]


def items(form: str, text: str, thinking: str = "", *, one_call: bool = False) -> list[Item]:
    return gather(read(OutputShape(form, TOOLS, thinking, one_call), [text]))


EXAMPLES: list[tuple[str, str, str, list[Item]]] = [
    (
        "hermes",  # Qwen2.5 and Hermes
        "",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        [WEATHER],
    ),
    (
        "hermes",  # Qwen3
        "tagged",
        "<think>\nOkay, the user wants two things.\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": [1, {"b": "}\\""}]}}\n</tool_call>',
        [
            Thought("Okay, the user wants two things.\n"),
            WEATHER,
            Call("add", 1, '{"a": [1, {"b": "}\\""}]}', closed=True),
        ],
    ),
    ("hermes", "begun", "Hmm.\n</think>\n\nHello!", [Thought("Hmm.\n"), Said("Hello!")]),  # DeepSeek R1
    (
        "hermes",  # Qwen3-Coder; the schema says which values are strings
        "",
        "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        [Said("I look.\n"), Call("get_weather", 0, '{"city": "12", "days": 3}', closed=True)],
    ),
    (
        "llama",
        "",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}; '
        '{"name": "add", "parameters": {}}',
        [WEATHER, Call("add", 1, "{}", closed=True)],
    ),
    (
        "llama",
        "",
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}',
        [WEATHER],
    ),
    ("llama", "", '{"temperature": 20}', [Said('{"temperature": 20}')]),
    (
        "mistral",
        "",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "VvvODy9mT"}, '
        '{"arguments": {"a": 1}, "name": "add"}]',
        [WEATHER, Call("add", 1, '{"a": 1}', closed=True)],
    ),
    (
        "mistral",
        "bracketed",
        '[THINK]Well[/THINK]So.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add{"a": 1}',
        [Thought("Well"), Said("So."), WEATHER, Call("add", 1, '{"a": 1}', closed=True)],
    ),
    (
        "pythonic",
        "",
        '[get_weather(city="Paris"), add(a=[1, (2)], b=True, c=\'it"s\', d=None)]',
        [WEATHER, Call("add", 1, '{"a": [1, 2], "b": true, "c": "it\\"s", "d": null}', closed=True)],
    ),
    ("pythonic", "", "[1, 2] is a list", [Said("[1, 2] is a list")]),
    ("list", "", '[{"name": "get_weather", "parameters": {"city": "Paris"}}]', [WEATHER]),
    ("arguments", "", '{"city": "Paris"}', [WEATHER]),
    ("", "tagged", "No thoughts <think>", [Said("No thoughts <think>")]),
    ("", "tagged", "  \n", [Said("  \n")]),
]


@pytest.mark.parametrize(("form", "thinking", "text", "expected"), EXAMPLES)
def test_what_models_write(form: str, thinking: str, text: str, expected: list[Item]) -> None:
    assert items(form, text, thinking) == expected


SHAPES = [
    OutputShape(form, TOOLS, thinking, one)
    for form in ("", "hermes", "llama", "mistral", "pythonic", "list", "arguments")
    for thinking in ("", "tagged", "begun", "bracketed")
    for one in (False, True)
]
FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "[THINK]", "<tool_call>", "</tool_call>", "<function=add>", "</function>",
     "<parameter=x>", "</parameter>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "[", "]", "{", "}", "add",
     "(", ")", "a=1", ",", ";", ' "', "\\", "\n", " ", "é", '{"name": "add", "arguments": ', '{"a": 1}',
     "</thi",
     "<"]
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from([text for _, _, text, _ in EXAMPLES]), st.lists(FRAGMENTS, max_size=25).map("".join)
)


@given(shape=st.sampled_from(SHAPES), text=TEXTS, cuts=st.lists(st.integers(0, 300), max_size=40))
def test_it_does_not_matter_how_the_text_is_cut(shape: OutputShape, text: str, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parts = [text[begin:end] for begin, end in pairwise(ends)]
    whole = gather(read(shape, [text]))
    assert gather(read(shape, parts)) == whole
    assert gather(read(shape, list(text))) == whole


@given(shape=st.sampled_from(SHAPES), text=TEXTS)
def test_what_was_told_stays_told(shape: OutputShape, text: str) -> None:
    """The pieces of a prefix are the beginning of those of the whole, so a resume may replay them."""
    parser, told = OutputParser(shape), ""
    for char in text:
        told += "".join(map(_spelled, parser.push(char)))
        whole = OutputParser(shape)
        assert "".join(map(_spelled, whole.push(text))).startswith(told)


@given(text=TEXTS)
def test_without_a_format_or_tags_nothing_is_lost(text: str) -> None:
    assert gather(read(OutputShape(), list(text))) == ([Said(text)] if text else [])


@given(text=TEXTS.filter(lambda text: "add" not in text and "get_weather" not in text))
def test_what_is_no_call_is_text(text: str) -> None:
    for form in ("hermes", "llama", "mistral", "pythonic", "list"):
        assert items(form, text) == ([Said(text)] if text else [])


def _spelled(piece: Piece) -> str:
    text = getattr(piece, "text", getattr(piece, "name", ""))
    return "".join(f"{type(piece).__name__}:{char} " for char in text) or type(piece).__name__ + " "


def test_a_call_cut_short_is_left_open_and_its_arguments_do_not_parse() -> None:
    for form, text in [
        ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Par'),
        ("hermes", "<tool_call><function=get_weather><parameter=city>\nPar"),
        ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Par'),
        ("pythonic", '[get_weather(city="Par'),
        ("arguments", '{"city": "Par'),
    ]:
        pieces = read(OutputShape(form, TOOLS), [text])
        (call,) = gather(pieces)
        assert isinstance(call, Call)
        assert CallClosed() not in pieces
        with pytest.raises(json.JSONDecodeError):
            json.loads(call.arguments)
        assert "Par" in call.arguments


def test_a_tool_that_the_request_does_not_have_is_text() -> None:
    text = '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'
    assert items("hermes", text) == [Said(text)]


def test_one_call_only() -> None:
    parser = OutputParser(OutputShape("llama", TOOLS, one_call=True))
    call = '{"name": "add", "parameters": {"a": 1}}'
    pieces = [*parser.push(f"{call};{call}"), *parser.finish()]
    assert gather(pieces) == [Call("add", 0, '{"a": 1}', closed=True)]
    assert parser.dropped


def test_reasoning_tokens_are_counted() -> None:
    parser = OutputParser(OutputShape(thinking="tagged"))
    for token in ("<think>", "a", "b", "</think>", "c"):
        parser.push(token)
    assert parser.reasoning_tokens == 3
