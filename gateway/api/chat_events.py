"""Chat completions objects: the whole answer, and the chunks of a stream. Pure.

Types: ``openai.types.chat.ChatCompletion`` and ``ChatCompletionChunk``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from gateway.api.choices import UsageTally
from gateway.api.errors import http_body, of_end
from gateway.api.token_logprobs import Spelling, show
from gateway.generation import Ended, Parsed, Queued, Text, Update
from gateway.output.pieces import Arguments, Call, CallOpened, Item, Piece, Reasoning, Thought, Words
from schemas.errors import HeadraceError
from schemas.ids import ResponseId, call_id
from schemas.reply import TokenLogprobs, Usage

DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class CompletionUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET


class Logprobs(msgspec.Struct, frozen=True):
    content: msgspec.Raw
    refusal: None = None


class ToolFunction(msgspec.Struct, frozen=True, omit_defaults=True):
    arguments: str
    name: str | None = None


class MessageCall(msgspec.Struct, frozen=True):
    id: str
    function: ToolFunction
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True):
    """``reasoning_content``: as vLLM and DeepSeek name it."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[MessageCall] | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, frozen=True):
    message: Message
    finish_reason: str
    logprobs: Logprobs | None = None
    index: int = 0


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: None = None


class CallDelta(msgspec.Struct, frozen=True):
    """``id`` and ``type`` come once, with the name."""

    index: int
    function: ToolFunction
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    delta: Delta
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    index: int = 0


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: None = None


def chat_id(response: ResponseId) -> str:
    return "chatcmpl-" + response.removeprefix("resp_")


def finish_reason(end: Ended) -> str | None:
    """None: it did not end in a way that chat completions has a word for; it is an error there."""
    return None if end.outcome in ("failed", "cancelled") else end.reason or "stop"


def completion(
    response: ResponseId,
    created_s: int,
    model: str,
    text: str,
    end: Ended,
    logprobs: msgspec.Raw | None,
    items: Sequence[Item] | None = None,
) -> ChatCompletion:
    """``items``: where the answer is more than text. Raises ``HeadraceError`` for a response that failed
    or was cancelled."""
    reason = finish_reason(end)
    if reason is None:
        raise failure(end)
    message = Message(text) if items is None else _message(response, text, items)
    choice = Choice(message, reason, None if logprobs is None else Logprobs(logprobs))
    return ChatCompletion(
        id=chat_id(response),
        created=created_s,
        model=model,
        choices=[choice],
        usage=usage(end.usage, end.reasoning_tokens),
    )


def _message(response: ResponseId, text: str, items: Sequence[Item]) -> Message:
    calls = [
        MessageCall(call_id(response, item.ordinal), ToolFunction(item.arguments, item.name))
        for item in items
        if isinstance(item, Call)
    ]
    thought = "".join(item.text for item in items if isinstance(item, Thought))
    return Message(
        text if text or not calls else None,
        tool_calls=calls or msgspec.UNSET,
        reasoning_content=thought or msgspec.UNSET,
    )


class ChatChunks:
    """One choice's chunks; the last of all choices ends the stream. The role goes out with the first text, so
    that a client that takes its first chunk for the first token measures what it means to."""

    def __init__(
        self,
        response: ResponseId,
        created_s: int,
        model: str,
        spelling: Spelling,
        *,
        include_usage: bool,
        include_logprobs: bool,
        index: int = 0,
        tally: UsageTally | None = None,
        so_far: Callable[[], Usage] | None = None,
        structure: str = "",
        call_response: ResponseId | None = None,
    ) -> None:
        """``tally``: of all choices, where there are several. ``so_far``: the usage, where every chunk
        is to tell it. ``structure``: as in ``failure``. ``call_response``: whose calls
        these are, where the choice is not the first."""
        self._call_response = call_response or response
        self._calls = 0
        self._id = chat_id(response)
        self._created_s = created_s
        self._model = model
        self._spelling = spelling
        self._include_usage = include_usage
        self._include_logprobs = include_logprobs
        self._index = index
        self._tally = tally or UsageTally(1, choices=1)
        self._so_far = so_far
        self._structure = structure
        self._role_sent = False

    def feed(self, update: Update) -> bytes:
        match update:
            case Text():
                return self._text(update) if update.text or update.logprobs else b""
            case Parsed():
                return self._parsed(update)
            case Ended():
                return self._end(update)
            case Queued() if update.position:
                return b": queued %d\n\n" % update.position  # a comment, which parsers skip
            case _:
                return b""

    def _text(self, update: Text) -> bytes:
        logprobs = self._logprobs(update.token_ids, update.logprobs)
        return self._role() + self._choice(Delta(content=update.text), logprobs=logprobs)

    def _parsed(self, update: Parsed) -> bytes:
        deltas: list[Delta] = []
        for _, pieces in update.entries:
            for piece in pieces:
                self._grow(deltas, piece)
        logprobs = self._logprobs(update.token_ids, update.logprobs) if update.logprobs else None
        if not deltas:
            return self._role() + self._choice(Delta(), logprobs=logprobs) if logprobs else b""
        frames = self._role() + self._choice(deltas[0], logprobs=logprobs)
        return frames + b"".join(self._choice(delta) for delta in deltas[1:])

    def _grow(self, deltas: list[Delta], piece: Piece) -> None:
        """One more, or the last one longer."""
        last = deltas[-1] if deltas else Delta()
        match piece:
            case Words(text) if last.content is not None:
                deltas[-1] = Delta(content=last.content + text)
            case Words(text):
                deltas.append(Delta(content=text))
            case Reasoning(text) if last.reasoning_content is not None:
                deltas[-1] = Delta(reasoning_content=last.reasoning_content + text)
            case Reasoning(text):
                deltas.append(Delta(reasoning_content=text))
            case CallOpened(name):
                id_ = call_id(self._call_response, self._calls)
                opened = CallDelta(self._calls, ToolFunction("", name), id_, "function")
                deltas.append(Delta(tool_calls=[opened]))
                self._calls += 1
            case Arguments(text) if last.tool_calls is not None and last.tool_calls[0].id is msgspec.UNSET:
                text = last.tool_calls[0].function.arguments + text
                deltas[-1] = Delta(tool_calls=[CallDelta(self._calls - 1, ToolFunction(text))])
            case Arguments(text):
                deltas.append(Delta(tool_calls=[CallDelta(self._calls - 1, ToolFunction(text))]))

    def _end(self, end: Ended) -> bytes:
        reason = finish_reason(end)
        if reason is None:
            return b"data: " + http_body(failure(end, self._structure)) + b"\n\n" + DONE
        frames = self._role() + self._choice(Delta(), reason)
        used = self._tally.add(self._index, end)
        if used is None:
            return frames
        if self._include_usage:
            frames += self._chunk([], usage(used, self._tally.reasoning_tokens))
        return frames + DONE

    def _role(self) -> bytes:
        if self._role_sent:
            return b""
        self._role_sent = True
        return self._choice(Delta(role="assistant", content=""))

    def _choice(self, delta: Delta, reason: str | None = None, logprobs: Logprobs | None = None) -> bytes:
        used = usage(self._so_far()) if self._so_far is not None else None
        return self._chunk([ChunkChoice(delta, reason, logprobs, self._index)], used)

    def _chunk(self, choices: list[ChunkChoice], used: CompletionUsage | None = None) -> bytes:
        chunk = Chunk(
            id=self._id,
            created=self._created_s,
            model=self._model,
            choices=choices,
            usage=used if self._include_usage else msgspec.UNSET,
        )
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _logprobs(self, ids: Sequence[int], given: Sequence[TokenLogprobs] | None) -> Logprobs | None:
        return Logprobs(show(ids, given, self._spelling)) if self._include_logprobs else None


def failure(end: Ended, structure: str = "") -> HeadraceError:
    """``structure``: as in ``of_end``."""
    return of_end("cancelled" if end.outcome == "cancelled" else end.code, end.message, structure)


def usage(used: Usage, reasoning_tokens: int = 0) -> CompletionUsage:
    return CompletionUsage(
        used.prompt_tokens,
        used.completion_tokens,
        used.prompt_tokens + used.completion_tokens,
        PromptTokensDetails(used.cached_tokens),
        CompletionTokensDetails(reasoning_tokens) if reasoning_tokens else msgspec.UNSET,
    )
