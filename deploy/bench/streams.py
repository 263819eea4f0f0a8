"""What the events of an answer mean to a measurement: text or not, and how it ended. Pure; one for each
response.

Only the few fields that matter are decoded (msgspec skips the rest: 0.6-1.1 us an event).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import msgspec

from deploy.bench.plan import Api

Outcome = Literal[
    "completed", "refused", "failed", "broken", "unreachable", "timed_out", "unfinished", "dropped"
]


class End(NamedTuple):
    """``reason``: a code, in the server's words where it gave one."""

    outcome: Outcome
    reason: str = ""


class Tokens(NamedTuple):
    """As the server counts them."""

    prompt: int
    cached: int
    output: int


class Stream(Protocol):
    """``text``: all of the answer, where it was asked to keep it."""

    end: End | None
    tokens: Tokens | None
    response_id: str

    @property
    def text(self) -> str: ...

    def feed(self, payload: bytes) -> bool:
        """One event's data; returns whether it brought text (or reasoning, or a call's arguments)."""

    def closed(self) -> End:
        """The body is over, whole."""


def stream_of(api: Api, *, keep_text: bool) -> Stream:
    if api in ("responses", "responses-ws"):
        return ResponsesStream()
    return CompletionsStream(keep_text=keep_text)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Error(msgspec.Struct):
    """``code`` and ``type`` are numbers at some servers."""

    code: str | int | None = None
    type: str | int | None = None
    message: str | None = None

    @property
    def reason(self) -> str:
        return str(self.code or self.type or self.message or "error")


# -- chat completions and completions ---------------------------------------------------------------


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _CompletionUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _CompletionUsage | None = None
    error: _Error | str | None = None


_chunks = msgspec.json.Decoder(_Chunk)


class CompletionsStream:
    """Ends with ``[DONE]``. Where a server leaves that out, a body that is whole and told a finish reason
    counts as completed, too."""

    def __init__(self, *, keep_text: bool = False) -> None:
        self.end: End | None = None
        self.tokens: Tokens | None = None
        self.response_id = ""
        self._finished = False
        self._parts: list[str] | None = [] if keep_text else None

    @property
    def text(self) -> str:
        return "".join(self._parts or ())

    def feed(self, payload: bytes) -> bool:
        if self.end is not None:
            return False
        if payload == b"[DONE]":
            self.end = End("completed")
            return False
        try:
            chunk = _chunks.decode(payload)
        except msgspec.DecodeError:
            self.end = End("failed", "unreadable event")
            return False
        if chunk.error is not None:
            self.end = End("failed", chunk.error if isinstance(chunk.error, str) else chunk.error.reason)
            return False
        if (usage := chunk.usage) is not None:
            cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
            self.tokens = Tokens(usage.prompt_tokens, cached or 0, usage.completion_tokens)
        said = False
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                self._finished = True
            said |= self._take(choice)
        return said

    def _take(self, choice: _Choice) -> bool:
        text, delta = choice.text, choice.delta
        other = False
        if delta is not None:
            text = delta.content
            other = bool(delta.reasoning_content or delta.reasoning or delta.tool_calls)
        if text and self._parts is not None:
            self._parts.append(text)
        return bool(text) or other

    def closed(self) -> End:
        if self.end is None:
            self.end = End("completed") if self._finished else End("broken", "ended without a finish reason")
        return self.end


# -- the Responses API ------------------------------------------------------------------------------


class _ResponsesUsage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _Details | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    id: str = ""
    usage: _ResponsesUsage | None = None
    error: _Error | None = None
    incomplete_details: _Incomplete | None = None


class _Event(msgspec.Struct):
    """``error``: of an error event on a WebSocket, whose ``status`` is HTTP's; over HTTP its ``code`` stands
    in the event itself."""

    type: str
    delta: str | None = None
    response: _Response | None = None
    error: _Error | None = None
    status: int | None = None
    code: str | None = None


_events = msgspec.json.Decoder(_Event)


class ResponsesStream:
    """The same over WebSocket and server-sent events. Reaching the limit of tokens is a completed answer."""

    def __init__(self) -> None:
        self.end: End | None = None
        self.tokens: Tokens | None = None
        self.response_id = ""

    @property
    def text(self) -> str:
        return ""  # conversations go on by id

    def feed(self, payload: bytes) -> bool:
        if self.end is not None:
            return False
        try:
            event = _events.decode(payload)
        except msgspec.DecodeError:
            self.end = End("failed", "unreadable event")
            return False
        if event.delta is not None:
            return event.type.endswith(".delta")
        if event.type in _OPENED and event.response is not None:
            self.response_id = event.response.id
        elif event.type in ("response.completed", "response.incomplete", "response.failed"):
            self._take_end(event.type, event.response or _Response())
        elif event.type == "error":
            self.end = self._refused(event)
        return False

    def _take_end(self, kind: str, response: _Response) -> None:
        self.response_id = response.id or self.response_id
        if (usage := response.usage) is not None:
            cached = usage.input_tokens_details.cached_tokens if usage.input_tokens_details else 0
            self.tokens = Tokens(usage.input_tokens, cached or 0, usage.output_tokens)
        if kind == "response.failed":
            self.end = End("failed", response.error.reason if response.error else "response.failed")
            return
        details = response.incomplete_details
        reason = (details.reason if details else None) or "incomplete"
        whole = kind == "response.completed" or reason == "max_output_tokens"
        self.end = End("completed") if whole else End("failed", reason)

    def _refused(self, event: _Event) -> End:
        reason = event.error.reason if event.error else event.code or "error"
        if self.response_id:
            return End("failed", reason)
        return End("refused", f"{event.status} {reason}" if event.status else reason)

    def closed(self) -> End:
        if self.end is None:
            self.end = End("broken", "ended without a terminal event")
        return self.end


_OPENED = ("response.created", "response.queued", "response.in_progress")


# -- refusals over HTTP -----------------------------------------------------------------------------


class _Refusal(msgspec.Struct):
    """``{"error": {…}}``, or with the fields at the top, as vLLM's and FastAPI's plain ones have them."""

    error: _Error | str | None = None
    code: str | int | None = None
    type: str | int | None = None


def refusal(status: int, body: bytes) -> End:
    """An answer that is no stream. ``status``: HTTP's."""
    try:
        told = msgspec.json.decode(body, type=_Refusal)
    except msgspec.DecodeError:
        told = _Refusal()
    by = told.error if isinstance(told.error, _Error) else told
    word = by.code or by.type or ""
    if status == 200:
        return End("failed", "not an event stream")
    return End("refused", str(status) if str(word) in ("", str(status)) else f"{status} {word}")
