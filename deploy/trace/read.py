"""What the broker keeps of one response, read for ``headrace trace``, and its words where they are wanted."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import msgspec

from broker import jetstream, subjects
from broker.connection import Broker, BrokerUnavailable, NoAnswer
from broker.history import read_stored
from broker.jetstream import ApiError, StoredMessage
from broker.log_reader import LogReader
from broker.replylog import decode_stored
from broker.tokenizers import fetch_tokenizer
from deploy.trace.job_facts import text_of
from deploy.trace.life import Life, NothingKept, read_life
from schemas import codec
from schemas.config import Nats
from schemas.errors import HeadraceError
from schemas.ids import ResponseId, parse_response_id

CONNECT_S = 5.0  # someone sits and waits


class TraceError(Exception):
    """The message is for the operator."""


class Words(msgspec.Struct, frozen=True):
    """``answer`` None: no tokenizer is at hand, or it has no tokens."""

    asked: str
    answer: str | None


class Traced(msgspec.Struct, frozen=True):
    life: Life
    words: Words | None = None


def trace(config: Nats, response: str, *, show_text: bool) -> Traced:
    """Raises ``TraceError``."""
    try:
        response_id = parse_response_id(response)
    except HeadraceError:
        raise TraceError(f"{response!r} is no response id: resp_ and 26 letters and digits") from None
    try:
        return asyncio.run(_trace(config, response_id, show_text))
    except NothingKept:
        hours = config.jobs_max_age_s / 3600
        raise TraceError(
            f"nothing is kept of {response}: it was never accepted here, or longer ago than the broker keeps "
            f"({hours:g} h of jobs), or its client has deleted it"
        ) from None
    except (ApiError, BrokerUnavailable, NoAnswer, HeadraceError) as error:
        raise TraceError(str(error)) from error


async def _trace(config: Nats, response: ResponseId, show_text: bool) -> Traced:
    broker = await Broker.connect(config, name="trace", wait_s=CONNECT_S)
    try:
        jobs = await _stored(broker, subjects.JOBS, subjects.job_by_response(response))
        log = await _stored(broker, subjects.REPLIES, subjects.replies_of_response(response))
        dead = await _stored(broker, subjects.DEAD, subjects.dead_of_response(response))
        life = read_life(response, jobs, log, dead, now_unix_ms=time.time() * 1000)
        return Traced(life, await _words(broker, jobs, log) if show_text else None)
    finally:
        await broker.close()


async def _stored(broker: Broker, stream: str, subject_filter: str) -> list[StoredMessage]:
    """Nothing where the stream is not there: nothing was ever accepted."""
    try:
        if stream == subjects.REPLIES:
            names = [last.subject for last in await jetstream.last_messages(broker, stream, [subject_filter])]
            return await read_stored(broker, stream, names) if names else []
        return [item async for item in jetstream.messages(broker, stream, subject_filter)]
    except NoAnswer as error:
        if error.why == "no_responders":
            return []
        raise


async def _words(broker: Broker, jobs: list[StoredMessage], log: list[StoredMessage]) -> Words | None:
    if not jobs:
        return None
    try:
        job = codec.decode_job(jobs[-1].data)
    except msgspec.DecodeError:
        return None
    reader = LogReader()
    for item in log:
        if (message := decode_stored(item)) is not None:
            reader.feed(item.seq, message)
    ids = reader.ids if reader.end is None else reader.ids[: reader.end.total]
    return Words(text_of(job), await _decoded(broker, job.model, ids) if ids else None)


async def _decoded(broker: Broker, model: str, ids: list[int]) -> str | None:
    """By the tokenizer that a live worker of this model names."""
    from gateway.tokenizer import ChatTokenizer

    bucket = subjects.WORKERS_KV
    for item in await jetstream.last_messages(broker, f"KV_{bucket}", [f"$KV.{bucket}.>"]):
        try:
            card = codec.decode_worker_card(item.data)
        except msgspec.DecodeError:  # a deletion's marker is empty
            continue
        if card.model == model:
            with tempfile.TemporaryDirectory(prefix="headrace-trace-") as folder:
                files = await fetch_tokenizer(broker, card.tokenizer, Path(folder))
                return ChatTokenizer.load(files).detokenizer.decode(ids)
    return None
