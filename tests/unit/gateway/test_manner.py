"""How a model speaks, by its chat template. Each of these has the lines by which a family is known."""

from __future__ import annotations

import pytest

from gateway.generation import ChatMessage
from gateway.output.manner import Manner, thinking_at
from gateway.tokenizer import ChatTokenizer
from tests.unit.gateway.tokenizers_built import byte_level

SAY = "{% for m in messages %}{{ m.content }}{% endfor %}"
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
QWEN_THINKS = (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
DEEPSEEK_THINKS = "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"


def manner(template: str) -> Manner:
    return ChatTokenizer(byte_level(), template, {}).manner


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param(SAY, Manner(), id="plain"),
        pytest.param(
            TOOLS + 'Answer <tool_call>{"name": …, "arguments": …}</tool_call>' + SAY + QWEN_THINKS,
            Manner(
                takes_tools=True,
                tool_format="hermes",
                thinking="tagged",
                switch="enable_thinking",
                thinks=True,
            ),
            id="Qwen3",
        ),
        pytest.param(
            TOOLS + "<tool_call>\n<function=name>\n<parameter=key>" + SAY,
            Manner(takes_tools=True, tool_format="hermes"),
            id="Qwen3-Coder",
        ),
        pytest.param(
            TOOLS + "<tool_call>{name}\n<arg_key>{key}</arg_key>" + SAY,
            Manner(takes_tools=True),
            id="GLM",
        ),
        pytest.param(
            "<|start_header_id|>user<|end_header_id|>" + TOOLS + '{"name": f, "parameters": {}}' + SAY,
            Manner(takes_tools=True, tool_format="llama"),
            id="Llama-3",
        ),
        pytest.param(
            TOOLS + "Use exact format: [func_name1(param1=value1), func_name2(...)]" + SAY,
            Manner(takes_tools=True, tool_format="pythonic"),
            id="Llama-4",
        ),
        pytest.param(
            TOOLS
            + "{% for m in messages %}{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.id[-9:] }}{% endfor %}"
            + "{% endfor %}",
            Manner(takes_tools=True, tool_format="mistral", short_ids=True),
            id="Mistral",
        ),
        pytest.param(
            SAY + "{% if messages[-1].tool_calls %}<|tool_sep|>{% endif %}<think>\n",
            Manner(thinking="tagged", thinks=True),
            id="DeepSeek-R1",
        ),
        pytest.param(
            TOOLS + "<|tool_sep|>" + SAY + DEEPSEEK_THINKS,
            Manner(takes_tools=True, thinking="tagged", switch="thinking"),
            id="DeepSeek-V3.1",
        ),
        pytest.param(
            '{% for tool in tools %}, "parameters": {% endfor %}<function_call> {"name": …}' + SAY,
            Manner(takes_tools=True),
            id="Granite",
        ),
    ],
)
def test_families_are_known_by_their_templates(template: str, expected: Manner) -> None:
    assert manner(template) == expected


def test_what_the_prompt_has_begun_or_ended() -> None:
    tokenizer = ChatTokenizer(byte_level(), SAY + DEEPSEEK_THINKS, {})
    on, off = (
        tokenizer.render([ChatMessage("user", "x")], options=(("thinking", on),)) for on in (True, False)
    )
    assert thinking_at(on, "tagged") == "begun"
    assert thinking_at(off, "tagged") == ""
    assert thinking_at("Say <think> no more", "tagged") == "tagged"
