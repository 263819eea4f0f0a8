"""A model's tokenizer files, and its chat template as transformers would run it."""

# ruff: noqa: E501  (chat templates are quoted as they are)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.generation import ChatMessage, Speaker
from gateway.tokenizer import ChatTokenizer
from schemas.errors import HeadraceError
from tests.unit.gateway.tokenizers_built import byte_level

STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def chat(template: str) -> ChatTokenizer:
    return ChatTokenizer(byte_level(), template, {})


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def test_a_refusal_of_the_template_is_the_clients_to_mend() -> None:
    with pytest.raises(HeadraceError, match="System role not supported") as refused:
        chat(STRICT).render([ChatMessage("developer", "x"), user("y")])
    assert refused.value.code == "invalid_request"


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ '%(name)s' % {} }}", "KeyError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 'x' | int(base=99) }}{{ messages | tojson(indent=[]) }}", "TypeError"),
        ("{{ strftime_now(3) }}", "TypeError"),
    ],
)
def test_a_template_that_breaks_on_the_messages_is_no_bug_of_ours(
    template: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(HeadraceError, match=kind) as refused:
        chat(template).render([user("my secret")])
    assert refused.value.code == "invalid_request"
    assert "secret" not in refused.value.message + caplog.text


def test_templates_may_ask_for_tools_and_documents() -> None:
    template = (
        "{% if tools is not none %}{{ tools | length }} tools{% endif %}"
        "{% if documents is defined and documents is none %}no documents{% endif %}"
    )
    assert chat(template).render([user("x")]) == "no documents"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("", '{"b": "é<", "a": [1]}'),
        ("(separators=(',', ':'))", '{"b":"é<","a":[1]}'),
        ("(sort_keys=True)", '{"a": [1], "b": "é<"}'),
        ("(ensure_ascii=True)", '{"b": "\\u00e9<", "a": [1]}'),
        ("(indent=1)", '{\n "b": "é<",\n "a": [\n  1\n ]\n}'),
        ("(False, none, (',', ':'), True)", '{"a":[1],"b":"é<"}'),
    ],
)
def test_tojson_takes_what_transformers_takes(options: str, shown: str) -> None:
    """``transformers.utils.chat_template_utils``: its order of arguments, and no escapes for HTML."""
    assert chat("{{ {'b': 'é<', 'a': [1]} | tojson" + options + " }}").render([user("x")]) == shown


def test_files_of_a_tokenizer_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    named = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"},
    ]
    settings = {"bos_token": {"content": "<|im_start|>"}, "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert ChatTokenizer.load(tmp_path).render([user("x")]) == "<|im_start|>x"
    (tmp_path / "chat_template.jinja").write_text(
        "{% generation %}{{ messages | tojson }}{% endgeneration %}"
    )
    assert ChatTokenizer.load(tmp_path).render([user("é<")]) == '[{"role": "user", "content": "é<"}]'
    (tmp_path / "tokenizer.json").write_text("{")
    with caplog.at_level("ERROR"), pytest.raises(HeadraceError, match="cannot be read") as refused:
        ChatTokenizer.load(tmp_path)
    assert refused.value.code == "internal_error"
    assert (
        refused.value.message == "The model's tokenizer cannot be read."
    )  # no path, nor what is in the file
    assert str(tmp_path) in caplog.text


TURNS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim if trimmed else m.content }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if thinking is defined and not thinking %}no thoughts{% endif %}"
    "{% endif %}"
)


def test_options_go_to_the_template_and_cannot_replace_what_is_the_gateways() -> None:
    assert chat(TURNS).render([user("x")], options=(("thinking", False),)) == (
        "[user]x[/][assistant]no thoughts"
    )
    options = (("messages", "mine"), ("add_generation_prompt", False), ("self", 1))
    assert chat(TURNS).render([user("x")], options=options) == "[user]x[/][assistant]"


@pytest.mark.parametrize(
    ("speaker", "text"),
    [
        ("assistant", "[user]x[/][assistant]so [/][assistant]"),
        ("nobody", "[user]x[/][assistant]so [/]"),
        ("last", "[user]x[/][assistant]so "),
    ],
)
def test_who_goes_on(speaker: Speaker, text: str) -> None:
    assert chat(TURNS).render([user("x"), ChatMessage("assistant", "so ")], speaker=speaker) == text


def test_a_message_that_the_template_does_not_show_cannot_be_continued() -> None:
    with pytest.raises(HeadraceError, match="cannot be continued") as refused:
        chat("{{ messages[0].content }}").render([user("x"), user("y")], speaker="last")
    assert refused.value.code == "invalid_request"
