"""What became of a response, read from its stored log: its tokens, its end, and when they were stored. All
times are the server's, so that those of an original and of its replay compare, whoever measured them.
"""

from __future__ import annotations

import msgspec

from broker import subjects
from broker.connection import Broker, unix_ms
from broker.history import read_stored
from broker.log_reader import LogReader
from broker.replylog import decode_stored
from deploy.replay.wanted import Ending, outcome_of
from gateway.context import read_verdict
from gateway.text import Detokenizer
from schemas.job import Job
from schemas.reply import Started


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """``ids``: the tokens that count, ``text``: what they say. Milliseconds count from the job's storing:
    to the first ``Started`` (``queue_ms``), to the first token, to the end. ``attempts``: 0 where no worker
    of its own wrote it. ``cached_tokens``: of the prompt, in the engine's prefix cache."""

    outcome: Ending
    reason: str | None = None
    code: str | None = None
    ids: tuple[int, ...] = ()
    text: str = ""
    attempts: int = 0
    cached_tokens: int = 0
    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None

    @property
    def is_cut(self) -> bool:
        """It might have gone on."""
        return self.outcome in ("failed", "cancelled", "open")


async def read_account(
    broker: Broker, job: Job, stored_unix_ms: float, detokenizer: Detokenizer
) -> Account | None:
    """None: nothing of its log is kept. Raises ``HeadraceError``, ``ApiError``."""
    log = LogReader()
    started_at: float | None = None
    marks: list[tuple[int, float]] = []  # so many tokens were stored, and when
    names = subjects.reply_log(job.gateway, job.response, job.session)
    for item in await read_stored(broker, subjects.REPLIES, names):
        message = decode_stored(item)
        if message is None:
            continue
        if isinstance(message, Started) and started_at is None:
            started_at = item.stored_unix_ms
        step = log.feed(item.seq, message)
        if step.new_ids or step.end is not None:
            marks.append((len(log.ids), item.stored_unix_ms))
    outcome = outcome_of(job, log, unix_ms())
    if outcome is None:
        return None

    def since(at_unix_ms: float | None) -> float | None:
        return None if at_unix_ms is None else max(0.0, at_unix_ms - stored_unix_ms)

    queue_ms = since(started_at)
    ttft_ms = since(next((at for count, at in marks if count), None))
    read = read_verdict(job, log, detokenizer)
    if read is None:
        text = detokenizer.decode(log.ids)
        return Account(
            outcome="open",
            ids=tuple(log.ids),
            text=text,
            attempts=log.attempts,
            queue_ms=queue_ms,
            ttft_ms=ttft_ms,
        )
    done, found = read
    # A worker may write on behind a stop string until it is told.
    ended_at = next((at for count, at in marks if done.stopped and count >= found.total), marks[-1][1])
    return Account(
        outcome=found.outcome,
        reason=found.reason,
        code=found.code,
        ids=tuple(log.ids[: found.total]),
        text=done.text,
        attempts=log.attempts,
        cached_tokens=found.usage.cached_tokens,
        queue_ms=queue_ms,
        ttft_ms=ttft_ms,
        total_ms=since(ended_at),
    )
