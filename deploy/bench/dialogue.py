"""A conversation as one API wants it asked: the body of each turn, given what was answered before."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from deploy.bench.plan import Target, Workload
from deploy.bench.scripts import Turn


class Dialogue:
    """``next_body`` is ready before its turn is due: making it is no part of what is measured."""

    def __init__(self, target: Target, workload: Workload, turns: list[Turn]) -> None:
        self._target = target
        self._workload = workload
        self._turns = turns
        self._done = 0
        self._messages: list[dict[str, str]] = []  # chat completions
        self._text = ""  # completions
        self._previous = ""
        # a name of its own in every run: what is remembered of an earlier run is not continued
        self._conversation = f"bench_{secrets.token_hex(12)}" if target.memory == "conversation" else ""
        self.next_body = self._body()

    @property
    def turn(self) -> Turn:
        """The next one."""
        return self._turns[self._done]

    @property
    def over(self) -> bool:
        return self._done == len(self._turns)

    @property
    def keeps_text(self) -> bool:
        """The answer's text is needed to go on."""
        return self._done + 1 < len(self._turns) and self._target.api in ("chat", "completions")

    def answered(self, text: str, response_id: str) -> None:
        self._messages.append({"role": "assistant", "content": text})
        self._text += text
        self._previous = response_id
        self._done += 1
        if not self.over:
            self.next_body = self._body()

    def _body(self) -> bytes:
        turn = self.turn
        fields: dict[str, Any] = {"model": self._target.model}
        match self._target.api:
            case "chat":
                self._messages.append({"role": "user", "content": turn.text})
                fields |= {"messages": self._messages, "max_tokens": turn.max_tokens, **_STREAMED}
            case "completions":
                self._text = f"{self._text}\n{turn.text}" if self._text else turn.text
                fields |= {"prompt": self._text, "max_tokens": turn.max_tokens, **_STREAMED}
            case "responses" | "responses-ws":
                fields |= {"input": turn.text, "max_output_tokens": turn.max_tokens}
                fields |= (
                    {"type": "response.create"} if self._target.api == "responses-ws" else {"stream": True}
                )
                if self._conversation:
                    fields["conversation"] = self._conversation
                elif self._previous:
                    fields["previous_response_id"] = self._previous
        if self._workload.temperature is not None:
            fields["temperature"] = self._workload.temperature
        if self._workload.ignore_eos:
            fields["ignore_eos"] = True
        fields |= self._target.extra
        return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
