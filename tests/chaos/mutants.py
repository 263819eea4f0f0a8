"""Mutations of the product, each of which breaks one rule of the reply log: an oracle that does not notice
them proves nothing. They are made in the processes that are to break it, never in the one that checks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

MUTANT = "CHAOS_MUTANT"
_HERE = Path(__file__).parent


def environment(name: str) -> dict[str, str]:
    """For a process that is to start so mutated."""
    assert name in MUTANTS, name
    path = [str(_HERE / "mutation"), str(_HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {MUTANT: name, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def apply(name: str) -> None:
    MUTANTS[name]()


def no_fence() -> None:
    """Readers take whoever's tokens and ends, and a claim does not ask who wrote before."""
    import msgspec

    from broker import jetstream
    from broker.log_reader import LogReader
    from broker.replylog import ReplyLog
    from schemas import codec

    def blind(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(self: LogReader, *args: Any) -> Any:
            *before, message = args
            return read(self, *before, msgspec.structs.replace(message, fence=self.fence or 0))

        return reading

    async def put_fence(self: Any, message: Any, expected_seq: int, timeout_s: float | None = None) -> int:
        headers = {jetstream.MSG_ID: secrets.token_hex(8)}
        data = codec.encode(message)
        ack = await jetstream.publish_until_stored(
            self._broker, self.fences_subject, data, headers, timeout_s=timeout_s
        )
        return ack.seq

    async def claim(self: Any, make_started: Callable[[int], Any], **_: Any) -> Any:
        from broker.replylog import Claim
        from schemas.ids import Fence

        return Claim(Fence(await put_fence(self, make_started(1), 0)), LogReader())

    _replace(LogReader, "_tokens", blind(LogReader._tokens))
    _replace(LogReader, "_terminal", blind(LogReader._terminal))
    _replace(ReplyLog, "_put_fence", put_fence)
    _replace(ReplyLog, "claim", claim)


def unconditional_terminal() -> None:
    """Whoever believes to be the writer ends the response."""
    from broker import jetstream
    from broker.replylog import ReplyLog

    async def end(self: Any, message: Any) -> int:
        headers = {jetstream.MSG_ID: secrets.token_hex(8)}
        data = self._fitting(message)
        ack = await jetstream.publish_until_stored(self._broker, self.tokens_subject, data, headers)
        return ack.seq

    _replace(ReplyLog, "end", end)


def no_overlap_check() -> None:
    """A reader takes each message whole, whatever it has."""
    from broker.log_reader import LogReader, Step

    def tokens(self: Any, message: Any) -> Step:
        if message.fence != self.fence:
            return Step()
        self._extend(message.ids, message.logprobs)
        return Step(new_ids=message.ids, logprobs=message.logprobs)

    _replace(LogReader, "_tokens", tokens)


def no_republish() -> None:
    """What was on the wire when the connection broke is never sent again, and the end does not repeat it."""
    import msgspec

    from broker.log_writer import LogWriter
    from workers import publisher

    finished = LogWriter.finished

    def bare(self: LogWriter, *args: Any) -> Any:
        return msgspec.structs.replace(finished(self, *args), ids=())

    _replace(LogWriter, "rewind", lambda self: None)
    _replace(LogWriter, "finished", bare)
    _replace(publisher, "_with_all_before", lambda writer, tokens: tokens)


def no_lease() -> None:
    """A writer never looks whether it still is one. (What it writes is fenced all the same.)"""
    from workers.run import Run

    async def look(self: Any) -> str:
        return "mine"

    _replace(Run, "_look", look)


def ack_before_finish() -> None:
    """The job is acked when its answer has begun, not when its end is stored."""
    from workers.run import Run

    claim = Run._claim

    async def claim_and_ack(self: Any) -> Any:
        claimed = await claim(self)
        await self._delivery.ack()
        return claimed

    _replace(Run, "_claim", claim_and_ack)


MUTANTS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        no_fence,
        unconditional_terminal,
        no_overlap_check,
        no_republish,
        no_lease,
        ack_before_finish,
    )
}


def _replace(owner: Any, name: str, by: Any) -> None:
    """Of what exists: a mutation must not become void when the product changes."""
    assert hasattr(owner, name), f"{owner.__name__} has no {name} to mutate"
    setattr(owner, name, by)
