"""A conversation as it is remembered: turns in text, and the exact token ids of all of them. Pure.

A new turn extends the ids, because what an engine's prefix cache holds is what it was given; the text is
for when that cannot be (another model, dropped rounds, a template that rewrites what was said).
"""

from __future__ import annotations

from typing import cast

import msgspec

from broker.log_reader import LogReader
from gateway.generation import ChatMessage, Role
from gateway.outcome import Verdict, stopped, verdict
from gateway.text import Completion, Detokenizer, complete
from schemas.ids import ModelToken, ResponseId
from schemas.job import Job
from schemas.reply import DELETED, Closed


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """One round: what was said to the assistant, as (role, content), its answer, and the answer's id."""

    said: tuple[tuple[str, str], ...]
    answer: str
    response: ResponseId = ResponseId("")


class Context(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``ids``: the last turn's prompt and completion, of ``model``; empty when they no longer spell the
    turns. ``tail``: text of the last answer that ``ids`` do not hold. ``session``: names the reply
    session, the same over all turns."""

    turns: tuple[Turn, ...] = ()
    system: str | None = None
    model: ModelToken = ModelToken("")
    ids: tuple[int, ...] = ()
    tail: str = ""
    session: str = ""
    created_unix_ms: int = 0  # of its first turn

    def messages(self) -> list[ChatMessage]:
        """The whole conversation, system message first."""
        messages = [ChatMessage("system", self.system)] if self.system is not None else []
        for turn in self.turns:
            messages += [ChatMessage(cast(Role, role), content) for role, content in turn.said]
            messages.append(ChatMessage("assistant", turn.answer))
        return messages

    def without_oldest(self) -> Context:
        return msgspec.structs.replace(self, turns=self.turns[1:], ids=(), tail="")


NOTHING = Context()


def split_system(messages: tuple[ChatMessage, ...]) -> tuple[str | None, tuple[ChatMessage, ...]]:
    if messages and messages[0].role in ("system", "developer"):
        return messages[0].content, messages[1:]
    return None, messages


def said_in(job: Job) -> tuple[ChatMessage, ...]:
    """The messages of the job's own turn."""
    shown = job.presentation
    pairs = shown.input or (("user", shown.user_text),)
    return tuple(ChatMessage(cast(Role, role), content) for role, content in pairs)


def present(messages: tuple[ChatMessage, ...]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """``user_text`` and ``input`` of a job's presentation: ``said_in`` backwards."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content, ()
    return "", tuple((message.role, message.content) for message in messages)


def is_deleted(log: LogReader) -> bool:
    """Its client has deleted the response while it was running."""
    return log.end is not None and isinstance(log.end.message, Closed) and log.end.message.code == DELETED


def read_verdict(job: Job, log: LogReader, detokenizer: Detokenizer) -> tuple[Completion, Verdict] | None:
    """What an ended response came to, read from its log alone. None: it has not ended. A stop string ends
    it, whether or not a gateway lived to close the log."""
    ids = log.ids if log.end is None else log.ids[: log.end.total]
    done = complete(detokenizer, ids, job.presentation.stop, job.sampling.min_tokens)
    if done.stopped:
        return done, stopped(job, done.total, log.end)
    return None if log.end is None else (done, verdict(job, log.end))


def fold(
    context: Context, job: Job, log: LogReader, detokenizer: Detokenizer, *, rounds: int
) -> Context | None:
    """The context with the job's turn, whichever gateway folds it; the job's prompt must have been built
    from ``context``. None where there is nothing to remember: the response failed, was deleted, or was
    cancelled before it said anything."""
    if is_deleted(log):
        return None
    read = read_verdict(job, log, detokenizer)
    if read is None:
        return None
    done, found = read
    if found.outcome == "failed" or (found.outcome == "cancelled" and not done.text):
        return None
    system, said = split_system(said_in(job))
    turn = Turn(tuple((message.role, message.content) for message in said), done.text, job.response)
    folded = Context(
        turns=(*context.turns, turn),
        system=context.system if system is None else system,
        model=job.model,
        ids=(*job.prompt_ids, *log.ids[: done.exact]),
        tail=done.tail,
        session=context.session,
        created_unix_ms=context.created_unix_ms or job.created_unix_ms,
    )
    if len(folded.turns) > rounds + rounds // 2:  # seldom, many at once: each time the ids are lost
        while len(folded.turns) > rounds:
            folded = folded.without_oldest()
    return folded


def fold_found(
    context: Context, job: Job, log: LogReader, detokenizer: Detokenizer, *, rounds: int
) -> Context | None:
    """As ``fold``, for a job that is found with its turn still to be folded in. It may have run without the
    memory (Redis was away when it began): its ids then spell only its own turn, and are not kept, so that
    the next prompt is encoded from the text of all turns."""
    folded = fold(context, job, log, detokenizer, rounds=rounds)
    if folded is None or _extends(job, context):
        return folded
    return msgspec.structs.replace(folded, ids=(), tail="")


def _extends(job: Job, context: Context) -> bool:
    """Whether it shows that the job's prompt holds all that is remembered."""
    if not context.turns:
        return True
    known = len(context.ids)
    return known > 0 and context.model == job.model and job.prompt_ids[:known] == context.ids
