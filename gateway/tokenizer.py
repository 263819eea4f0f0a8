"""One model's tokenizer at the edge: chat template, encoding, decoding. Blocking; callers use threads.

Read from the tokenizer's own files with ``tokenizers`` and jinja2: transformers' AutoTokenizer imports
torch where it is installed (31 s and 410 MB, measured, against 0.1 s and 30 MB). The template runs as
transformers runs it (sandbox, globals, filters: its ``utils/chat_template_utils.py``).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from gateway.generation import ChatMessage, Speaker, TemplateOptions, Tool
from gateway.output.manner import Manner, is_shown, manner_of
from gateway.text import Detokenizer
from schemas.errors import HeadraceError
from schemas.job import OutputShape

log = logging.getLogger(__name__)

# A prompt is encoded in the thread that asks: handing it to the library's pool costs a thread switch, which
# takes longer than the encoding where the machine is busy. The library reads this at each call.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_BREAK = "\ue000headrace-goes-on-here\ue000"  # stands where a message is to be continued, and is cut off
TEMPLATE_NAMES = frozenset({"messages", "tools", "documents", "add_generation_prompt", *_SPECIAL_NAMES})


class ChatTokenizer:
    """Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, special: dict[str, str]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._template = None if template is None else _compiled(template)
        self._knows_developer = template is not None and "developer" in template
        self._special = special
        self.detokenizer = Detokenizer(tokenizer)
        showing = Detokenizer(tokenizer, is_shown)
        self._showing = showing if showing.shows_special else self.detokenizer
        self.manner = Manner()
        if template is not None:
            self.manner = manner_of(template, self._probe)

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        """Raises ``HeadraceError(internal_error)`` where the files are damaged."""
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            settings = _object(folder / "tokenizer_config.json")
            special = _special_tokens(_object(folder / "special_tokens_map.json") | settings)
            return cls(tokenizer, _template(folder, settings), special)
        except Exception as error:  # tokenizers has no error type of its own
            log.error("the tokenizer in %s cannot be read: %r", folder, error)
            raise HeadraceError("internal_error", "The model's tokenizer cannot be read.") from error

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def detokenizer_of(self, shape: OutputShape | None) -> Detokenizer:
        """Some markers of reasoning and calls are special tokens, and are text only where they are read."""
        return self.detokenizer if shape is None else self._showing

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        options: TemplateOptions = (),
        tools: Sequence[Tool] = (),
        speaker: Speaker = "assistant",
    ) -> str:
        """The prompt's text, up to where the ``speaker`` goes on. Raises ``HeadraceError`` where the
        template refuses the messages (roles that do not alternate, no system role, …) or fails on them."""
        if self._template is None:
            raise HeadraceError(
                "invalid_request", "This model has no chat template: use /v1/completions.", param="model"
            )
        shown = [self._shown(message) for message in messages]
        if speaker == "last":
            shown[-1]["content"] += _BREAK
        try:
            text = self._template.render(
                {
                    **dict(options),
                    "messages": shown,
                    "tools": [{"type": "function", "function": tool.function()} for tool in tools] or None,
                    "documents": None,
                    "add_generation_prompt": speaker == "assistant",
                    **self._special,
                }
            )
        except jinja2.TemplateError as error:
            raise _refused(f"does not take these messages: {error}") from error
        except Exception as error:  # a template is a program: what it raises can be anything
            kind = type(error).__name__  # its text may quote the messages, or us
            log.warning("a chat template failed with %s", kind)
            raise _refused(f"fails on these messages ({kind}): change their roles or content.") from error
        if speaker != "last":
            return text
        before, broken, _ = text.rpartition(_BREAK)
        if not broken:
            raise _refused("does not show the last message as it is, so that it cannot be continued.")
        return before

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """``add_special_tokens`` for text that no template has put them into. A batch of one: ``encode``
        keeps the GIL to its end, and every stream of the gateway would stand still (0.4 s of CPU for 100,000
        tokens, tests/bench/long_prompt.py); the fast one also has no offsets to free under it."""
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def _shown(self, message: ChatMessage) -> dict[str, Any]:
        """As transformers' templates know messages; arguments are objects there."""
        shown: dict[str, Any] = {"role": self._role(message), "content": message.content}
        if message.reasoning:
            shown["reasoning_content"] = message.reasoning
        if message.tool_call_id is not None:
            shown["tool_call_id"] = self._call_id(message.tool_call_id)
        if message.tool_calls:
            shown["tool_calls"] = [
                {
                    "id": self._call_id(call.id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": _arguments(call.arguments)},
                }
                for call in message.tool_calls
            ]
        return shown

    def _call_id(self, given: str) -> str:
        return given[-9:] if self.manner.short_ids else given

    def _probe(self, options: dict[str, bool]) -> str:
        try:
            return self.render([ChatMessage("user", "?")], options=tuple(options.items()))
        except HeadraceError:
            return ""

    def _role(self, message: ChatMessage) -> str:
        """``developer`` is what newer APIs call ``system``; most templates know only the latter."""
        return "system" if message.role == "developer" and not self._knows_developer else message.role


def _arguments(text: str) -> object:
    """An answer that was cut short leaves half a JSON text, which is then shown as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _refused(problem: str) -> HeadraceError:
    return HeadraceError("invalid_request", f"The model's chat template {problem}", param="input")


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text())
    return value if isinstance(value, dict) else {}


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    special = {}
    for name in _SPECIAL_NAMES:
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            special[name] = text
    return special


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """Its own file, or the setting: text, or a list of named ones of which ``default`` is for chat."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    value = settings.get("chat_template")
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}.get("default")
    return value if isinstance(value, str) else None


def _compiled(template: str) -> jinja2.Template:
    """With its globals in one plain dict: each rendering copies them, and a chain of two takes 10 us."""
    compiled = _environment().from_string(template)
    compiled.globals = dict(compiled.globals)
    return compiled


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlocks(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
