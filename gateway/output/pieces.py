"""What a completion's text falls into as it comes, and the items that its pieces make up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """Of the message."""

    text: str


@dataclass(frozen=True, slots=True)
class CallOpened:
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """Of the open call, a part of their JSON text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallClosed:
    pass


Piece = Reasoning | Words | CallOpened | Arguments | CallClosed


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """``ordinal``: among the calls of its response, from 0. Open arguments may be half a JSON text."""

    name: str
    ordinal: int
    arguments: str = ""
    closed: bool = False


Item = Thought | Said | Call


def gather(pieces: Iterable[Piece]) -> list[Item]:
    """The items of a completion, in order."""
    items: list[Item] = []
    texts: list[str] = []  # of the last item

    def settle() -> None:
        if not texts:
            return
        text = "".join(texts)
        texts.clear()
        match items[-1]:
            case Call() as call:
                items[-1] = replace(call, arguments=text)
            case other:
                items[-1] = replace(other, text=text)

    calls = 0
    for piece in pieces:
        match piece:
            case Reasoning(text):
                if not (items and isinstance(items[-1], Thought)):
                    settle()
                    items.append(Thought(""))
                texts.append(text)
            case Words(text):
                if not (items and isinstance(items[-1], Said)):
                    settle()
                    items.append(Said(""))
                texts.append(text)
            case CallOpened(name):
                settle()
                items.append(Call(name, calls))
                calls += 1
            case Arguments(text):
                texts.append(text)
            case CallClosed():
                settle()
                last = items[-1]
                assert isinstance(last, Call)
                items[-1] = replace(last, closed=True)
    settle()
    return items
