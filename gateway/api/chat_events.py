"""Chat completions objects: the whole answer, and the chunks of a stream. Pure.

Types: ``openai.types.chat.ChatCompletion`` and ``ChatCompletionChunk``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from gateway.api.errors import http_body, of_end
from gateway.api.token_logprobs import Spelling, show
from gateway.generation import Ended, Queued, Text, Update
from schemas.errors import HeadraceError
from schemas.ids import ResponseId
from schemas.reply import TokenLogprobs, Usage

DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Logprobs(msgspec.Struct, frozen=True):
    content: msgspec.Raw
    refusal: None = None


class Message(msgspec.Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


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


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None


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
) -> ChatCompletion:
    """Raises ``HeadraceError`` for a response that failed or was cancelled."""
    reason = finish_reason(end)
    if reason is None:
        raise failure(end)
    choice = Choice(Message(text), reason, None if logprobs is None else Logprobs(logprobs))
    return ChatCompletion(
        id=chat_id(response), created=created_s, model=model, choices=[choice], usage=usage(end.usage)
    )


class ChatChunks:
    """One stream's chunks. The role goes out with the first text, so that a client that takes its first
    chunk for the first token measures what it means to."""

    def __init__(
        self,
        response: ResponseId,
        created_s: int,
        model: str,
        spelling: Spelling,
        *,
        include_usage: bool,
        include_logprobs: bool,
    ) -> None:
        self._id = chat_id(response)
        self._created_s = created_s
        self._model = model
        self._spelling = spelling
        self._include_usage = include_usage
        self._include_logprobs = include_logprobs
        self._role_sent = False

    def feed(self, update: Update) -> bytes:
        match update:
            case Text():
                return self._text(update) if update.text or update.logprobs else b""
            case Ended():
                return self._end(update)
            case Queued() if update.position:
                return b": queued %d\n\n" % update.position  # a comment, which parsers skip
            case _:
                return b""

    def _text(self, update: Text) -> bytes:
        logprobs = self._logprobs(update.token_ids, update.logprobs)
        return self._role() + self._chunk([ChunkChoice(Delta(content=update.text), logprobs=logprobs)])

    def _end(self, end: Ended) -> bytes:
        reason = finish_reason(end)
        if reason is None:
            return b"data: " + http_body(failure(end)) + b"\n\n" + DONE
        frames = self._role() + self._chunk([ChunkChoice(Delta(), reason)])
        if self._include_usage:
            frames += self._chunk([], usage(end.usage))
        return frames + DONE

    def _role(self) -> bytes:
        if self._role_sent:
            return b""
        self._role_sent = True
        return self._chunk([ChunkChoice(Delta(role="assistant", content=""))])

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


def failure(end: Ended) -> HeadraceError:
    return of_end("cancelled" if end.outcome == "cancelled" else end.code, end.message)


def usage(used: Usage) -> CompletionUsage:
    return CompletionUsage(
        used.prompt_tokens,
        used.completion_tokens,
        used.prompt_tokens + used.completion_tokens,
        PromptTokensDetails(used.cached_tokens),
    )
