"""What ``headrace dead`` shows and drops. Never a prompt's text unless it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import click
import msgspec
from rich.table import Table

from broker.connection import Broker, unix_ms
from broker.tokenizers import fetch_tokenizer
from deploy.replay import letters, report
from deploy.replay.letters import Letter
from deploy.replay.run import ReplayError, on_broker
from deploy.replay.wanted import Wanted
from gateway.catalog import tokenizer_cache
from gateway.tokenizer import ChatTokenizer
from schemas.config import Config
from schemas.ids import ResponseId
from schemas.job import Job


@dataclass(frozen=True, slots=True)
class Choice:
    wanted: Wanted
    code: str | None = None

    def takes(self, letter: Letter) -> bool:
        wanted = self.wanted
        return (
            (not wanted.responses or letter.response in wanted.responses)
            and wanted.takes_time(letter.stored_unix_ms)
            and wanted.model in (None, letter.model, letter.model_token)
            and (wanted.tenant is None or (letter.job is not None and letter.job.tenant == wanted.tenant))
            and self.code in (None, letter.code)
        )


class Line(msgspec.Struct, frozen=True):
    """A letter in a list. ``tenant``: None where its job cannot be read."""

    response: str
    died_unix_ms: int
    model: str
    tenant: str | None
    code: str
    message: str
    attempts: int
    prompt_tokens: int


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """All there is of a letter, but for its prompt."""

    response: str
    died_unix_ms: int
    stored_seq: int
    subject: str
    job_subject: str
    headers: dict[str, str]
    model: str
    code: str
    message: str
    history: tuple[str, ...]
    job_bytes: int
    tenant: str | None = None
    priority: str | None = None
    lane: str | None = None
    replay_of: str | None = None
    created_unix_ms: int | None = None
    deadline_unix_ms: int | None = None
    prompt_tokens: int | None = None
    sampling: dict[str, object] | None = None
    prompt: str | None = None


def show_all(config: Config, choice: Choice, *, as_json: bool) -> None:
    """Raises ``ReplayError``, as all of these."""
    lines = [_line(letter) for letter in on_broker(config, lambda broker: _chosen(broker, choice))]
    if as_json:
        click.echo(msgspec.json.encode(lines).decode())
        return
    if not lines:
        click.echo("No dead letters.")
        return
    now = unix_ms()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("response", "age", "model", "tenant", "code", "attempts", "prompt", "message"):
        table.add_column(name, no_wrap=name == "response")
    for line in lines:
        table.add_row(
            line.response,
            report.age(now - line.died_unix_ms),
            line.model,
            line.tenant or "?",
            line.code,
            str(line.attempts),
            str(line.prompt_tokens),
            line.message,
        )
    report.console().print(table, markup=False)


def show_one(config: Config, response: ResponseId, *, show_text: bool, as_json: bool) -> None:
    page = on_broker(config, lambda broker: _page(broker, response, show_text))
    if as_json:
        click.echo(msgspec.json.encode(page).decode())
        return
    shown = msgspec.structs.asdict(page)
    history = shown.pop("history")
    for name, value in shown.items():
        if value is None:
            continue
        if name.endswith("_unix_ms"):
            name, value = name.removesuffix("_unix_ms"), report.moment(value)
        if isinstance(value, dict):
            value = ", ".join(f"{key}={item}" for key, item in value.items())
        click.echo(f"{name.replace('_', ' '):<14} {value}")
    for line in history:
        click.echo(f"{'':<14} {line}")


def drop_all(config: Config, choice: Choice, agree: Callable[[int], bool]) -> int:
    """How many were dropped."""

    async def work(broker: Broker) -> int:
        chosen = await _chosen(broker, choice)
        missing = set(choice.wanted.responses) - {letter.response for letter in chosen}
        if missing:
            raise ReplayError(f"there is no dead letter of {', '.join(sorted(missing))}; nothing was dropped")
        if not chosen or not agree(len(chosen)):
            return 0
        for letter in chosen:
            await letters.drop(broker, letter)
        return len(chosen)

    return on_broker(config, work)


async def _chosen(broker: Broker, choice: Choice) -> list[Letter]:
    chosen: list[Letter] = []
    async for letter in letters.letters(broker):
        if choice.takes(letter):
            chosen.append(letter)
            if len(chosen) == choice.wanted.limit:
                break
    return chosen


async def _page(broker: Broker, response: ResponseId, show_text: bool) -> Page:
    found = await letters.newest_letter(broker, response)
    if found is None:
        raise ReplayError(
            f"there is no dead letter of {response}; `headrace dead list` shows those there are"
        )
    job = await letters.job_in_letter(broker, found)
    prompt = await _text(broker, job) if show_text and job is not None else None
    page = Page(
        response=found.response,
        died_unix_ms=found.stored_unix_ms,
        stored_seq=found.seq,
        subject=found.subject,
        job_subject=found.job_subject,
        headers=found.headers,
        model=found.model,
        code=found.code,
        message=found.message,
        history=found.history,
        job_bytes=found.job_bytes,
        prompt=prompt,
    )
    if job is None:
        return page
    return msgspec.structs.replace(
        page,
        tenant=job.tenant,
        priority=job.priority,
        lane=job.lane,
        replay_of=job.replay_of,
        created_unix_ms=job.created_unix_ms,
        deadline_unix_ms=job.deadline_unix_ms,
        prompt_tokens=found.prompt_tokens,
        sampling=msgspec.to_builtins(_without_text(job), str_keys=True),
    )


def _without_text(job: Job) -> object:
    """Sampling without what a client may have written into it."""
    return msgspec.structs.replace(job.sampling, bad_words=(), structured=None)


async def _text(broker: Broker, job: Job) -> str:
    folder = await fetch_tokenizer(broker, job.model, tokenizer_cache())
    detokenizer = ChatTokenizer.load(folder).detokenizer
    return b"".join(map(detokenizer.token_bytes, job.prompt_ids)).decode(errors="replace")


def _line(letter: Letter) -> Line:
    return Line(
        response=letter.response,
        died_unix_ms=letter.stored_unix_ms,
        model=letter.model,
        tenant=None if letter.job is None else letter.job.tenant,
        code=letter.code,
        message=letter.message,
        attempts=letter.attempts,
        prompt_tokens=letter.prompt_tokens,
    )
