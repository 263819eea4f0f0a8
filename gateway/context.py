"""A conversation as it is remembered: turns in text, and the exact token ids of all of them. Pure.

A new turn extends the ids, because what an engine's prefix cache holds is what it was given; the text is
for when that cannot be (another model, dropped rounds, a template that rewrites what was said).
"""

from __future__ import annotations

import msgspec

from broker.log_reader import LogReader
from gateway.generation import ChatMessage, ToolCall
from gateway.outcome import Verdict, stopped, verdict
from gateway.output.parser import read_whole
from gateway.output.pieces import Call, Said, Thought
from gateway.text import Completion, Detokenizer, complete
from schemas.ids import ModelToken, ResponseId, call_id
from schemas.job import Job
from schemas.reply import DELETED, Closed


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """One round: what was said to the assistant, as (role, content) where that is all, and its answer as the
    model wrote it. ``shown``: the answer's reasoning, words and calls, where it was more than words.
    ``response``: the answer's id."""

    said: tuple[tuple[str, str] | ChatMessage, ...]
    answer: str
    shown: ChatMessage | None = None
    response: ResponseId = ResponseId("")

    def messages(self) -> list[ChatMessage]:
        """What was said, and the answer."""
        return [*map(_message, self.said), self.shown or ChatMessage("assistant", self.answer)]


class Context(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``ids``: the last turn's prompt and completion, of ``model``; empty when they no longer spell the
    turns. ``tail``: text of the last answer that ``ids`` do not hold. ``session``: names the reply
    session, the same over all turns. ``rendering``: of the tools and options that
    ``ids`` were rendered with."""

    turns: tuple[Turn, ...] = ()
    system: str | None = None
    model: ModelToken = ModelToken("")
    ids: tuple[int, ...] = ()
    tail: str = ""
    session: str = ""
    rendering: str = ""
    created_unix_ms: int = 0  # of its first turn

    def messages(self) -> list[ChatMessage]:
        """The whole conversation, system message first."""
        messages = [ChatMessage("system", self.system)] if self.system is not None else []
        for turn in self.turns:
            messages += turn.messages()
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
    if shown.said:
        return shown.said
    return tuple(ChatMessage(*pair) for pair in shown.input or (("user", shown.user_text),))


def present(
    messages: tuple[ChatMessage, ...],
) -> tuple[str, tuple[tuple[str, str], ...], tuple[ChatMessage, ...]]:
    """``user_text``, ``input`` and ``said`` of a job's presentation: ``said_in`` backwards."""
    if not all(map(_is_plain, messages)):
        return "", (), messages
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content, (), ()
    return "", tuple((message.role, message.content) for message in messages), ()


def _is_plain(message: ChatMessage) -> bool:
    return message == ChatMessage(message.role, message.content)


def _message(said: tuple[str, str] | ChatMessage) -> ChatMessage:
    return said if isinstance(said, ChatMessage) else ChatMessage(*said)


def _pair(message: ChatMessage) -> tuple[str, str] | ChatMessage:
    return (message.role, message.content) if _is_plain(message) else message


def _turn(job: Job, said: tuple[ChatMessage, ...], answer: str) -> tuple[Turn, bool]:
    """And whether the answer, as the model wrote it, is what a next prompt may go on from: not where a
    schema made it write calls in another way than its own, nor where a call was dropped."""
    shape, pairs = job.presentation.shape, tuple(map(_pair, said))
    if shape is None:
        return Turn(pairs, answer, response=job.response), True
    items, dropped = read_whole(shape, answer)
    shown = ChatMessage(
        "assistant",
        "".join(item.text for item in items if isinstance(item, Said)),
        tuple(
            ToolCall(call_id(ResponseId(job.response), item.ordinal), item.name, item.arguments)
            for item in items
            if isinstance(item, Call)
        ),
        reasoning="".join(item.text for item in items if isinstance(item, Thought)),
    )
    native = not dropped and shape.tool_format not in ("list", "arguments")
    return Turn(pairs, answer, None if _is_plain(shown) else shown, job.response), native


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
    turn, native = _turn(job, said, done.text)
    folded = Context(
        turns=(*context.turns, turn),
        system=context.system if system is None else system,
        model=job.model,
        ids=(*job.prompt_ids, *log.ids[: done.exact]) if native else (),
        tail=done.tail if native else "",
        session=context.session,
        rendering=job.presentation.rendering,
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
