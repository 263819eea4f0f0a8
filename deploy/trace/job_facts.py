"""What the queue and the dead letters tell of one response. Pure; no text of a prompt is in it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker.jetstream import StoredMessage
from schemas import codec
from schemas.job import Job
from schemas.sampling import Sampling


class JobCopy(msgspec.Struct, frozen=True, kw_only=True):
    """Where the job is stored: once, or twice where it was held first and queued later."""

    seq: int
    stored_unix_ms: float
    subject: str
    bytes: int


class JobFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``unreadable``: why the job does not decode, else empty; then only headers and copies are known.
    ``stored_unix_ms``: its first copy's. ``text_characters``: of what the request said, kept in the job."""

    copies: tuple[JobCopy, ...]
    stored_unix_ms: float
    headers: dict[str, str]
    unreadable: str = ""
    tenant: str = ""
    session: str = ""
    gateway: str = ""
    model: str = ""
    model_name: str = ""
    requested_model: str = ""
    routed_by: str = ""
    routing_reason: str = ""
    api: str = ""
    priority: str = ""
    lane: str = ""
    held: bool = False
    prompt_tokens: int = 0
    text_characters: int = 0
    sampling: Sampling | None = None
    stop_strings: int = 0
    conversation: bool = False
    previous_response_id: str | None = None
    memory: str = ""
    cache: str = ""
    structured: bool = False
    tools: int = 0
    created_unix_ms: int | None = None
    deadline_unix_ms: int | None = None
    received_unix_ms: float | None = None
    edge_ms: float = 0.0
    traceparent: str | None = None
    replay_of: str | None = None


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter. ``history``: a line for each fence that led to it."""

    seq: int
    stored_unix_ms: float
    subject: str
    code: str
    message: str
    job_bytes: int = 0
    history: tuple[str, ...] = ()


def read_jobs(stored: Sequence[StoredMessage]) -> JobFacts:
    """Of all copies, at least one; the last decides."""
    copies = tuple(
        JobCopy(seq=m.seq, stored_unix_ms=m.stored_unix_ms, subject=m.subject, bytes=len(m.data))
        for m in stored
    )
    last, since = stored[-1], copies[0].stored_unix_ms
    headers = dict(last.headers)
    try:
        job = codec.decode_job(last.data)
    except msgspec.DecodeError as error:
        return JobFacts(copies=copies, stored_unix_ms=since, headers=headers, unreadable=str(error))
    shown, route = job.presentation, job.presentation.route
    return JobFacts(
        copies=copies,
        stored_unix_ms=since,
        headers=headers,
        tenant=job.tenant,
        session=job.session,
        gateway=job.gateway,
        model=job.model,
        model_name=job.model_name,
        requested_model="" if route is None else route.requested,
        routed_by="" if route is None else route.by,
        routing_reason="" if route is None else route.reason,
        api=shown.api,
        priority=job.priority,
        lane=job.lane,
        held=job.held,
        prompt_tokens=len(job.prompt_ids),
        text_characters=len(text_of(job)),
        sampling=_without_words(job.sampling),
        stop_strings=len(shown.stop),
        conversation=shown.conversation is not None,
        previous_response_id=shown.previous_response_id,
        memory=shown.memory,
        cache=shown.cache,
        structured=job.sampling.structured is not None,
        tools=0 if shown.shape is None else len(shown.shape.tools),
        created_unix_ms=job.created_unix_ms,
        deadline_unix_ms=job.deadline_unix_ms,
        received_unix_ms=job.received_unix_ms or None,
        edge_ms=job.edge_ms,
        traceparent=job.traceparent,
        replay_of=job.replay_of,
    )


def _without_words(sampling: Sampling) -> Sampling:
    """Schemas and bad words are the client's own text."""
    return msgspec.structs.replace(sampling, structured=None, bad_words=())


def text_of(job: Job) -> str:
    """What the request itself said, each message a line."""
    shown = job.presentation
    if shown.said:
        return "\n".join(f"{message.role}: {message.content}" for message in shown.said)
    if shown.input:
        return "\n".join(f"{role}: {content}" for role, content in shown.input)
    return shown.user_text


def read_letter(stored: StoredMessage) -> Letter:
    try:
        letter = codec.decode_dead_letter(stored.data)
    except msgspec.DecodeError as error:
        code, message = stored.headers.get("Hr-Code", "unknown"), f"the letter does not decode: {error}"
        return Letter(
            seq=stored.seq,
            stored_unix_ms=stored.stored_unix_ms,
            subject=stored.subject,
            code=code,
            message=message,
        )
    return Letter(
        seq=stored.seq,
        stored_unix_ms=stored.stored_unix_ms,
        subject=stored.subject,
        code=letter.code,
        message=letter.message,
        job_bytes=len(letter.job),
        history=letter.history,
    )
