"""How a model speaks, found out from its chat template: whether it takes tools, how it writes calls, and
whether it thinks before it answers. The template is asked, not guessed at, where it has a switch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gateway.output.parser import SHOWN_TOKENS

# Variables by which templates let thinking be turned on and off (Qwen, SmolLM; DeepSeek, Granite).
SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Manner:
    """``tool_format``: empty where the template does not tell. ``thinking``: as in ``OutputShape``, where the
    model thinks. ``switch``: the template's variable for it. ``thinks``: without being told to.
    ``short_ids``: a call's id has nine characters (Mistral)."""

    takes_tools: bool = False
    tool_format: str = ""
    thinking: Literal["", "tagged", "bracketed"] = ""
    switch: str | None = None
    thinks: bool = False
    takes_effort: bool = False
    short_ids: bool = False


def manner_of(template: str, probe: Callable[[dict[str, bool]], str]) -> Manner:
    """``probe``: a prompt as the template makes it with these options."""
    thinking: Literal["", "tagged", "bracketed"] = ""
    if "</think>" in template or "<think>" in template:
        thinking = "tagged"
    elif "[THINK]" in template:
        thinking = "bracketed"
    switch, thinks = None, bool(thinking)
    for name in SWITCHES if thinking else ():
        if name in template and (on := probe({name: True})) != probe({name: False}):
            switch, thinks = name, probe({}) == on
            break
    return Manner(
        takes_tools=re.search(r"\btools\b", template) is not None,
        tool_format=_tool_format(template),
        thinking=thinking,
        switch=switch,
        thinks=thinks,
        takes_effort="reasoning_effort" in template,
        short_ids="[TOOL_CALLS]" in template and "9" in template,
    )


def _tool_format(template: str) -> str:
    """Empty rather than a guess: what is read in the wrong way would reach the client as text."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "" if "<arg_key>" in template else "hermes"  # GLM's look alike, and are another format
    if "<|python_start|>" in template or re.search(r"\[func_name1\(", template):
        return "pythonic"
    llama = "<|start_header_id|>" in template or "<|header_start|>" in template
    return "llama" if "<|python_tag|>" in template or (llama and '"parameters": ' in template) else ""


def thinking_at(prompt: str, expected: str) -> str:
    """``OutputShape.thinking`` behind this prompt: it may have begun the reasoning, or ended it."""
    end = prompt[-64:].rstrip()
    if end.endswith(("<think>", "[THINK]")):
        return "begun" if end.endswith("<think>") else expected
    return "" if end.endswith(("</think>", "[/THINK]")) else expected


def is_shown(token: str) -> bool:
    """A special token that the output cannot be read without."""
    return token in SHOWN_TOKENS
