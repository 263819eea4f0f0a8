"""``headrace replay`` and ``headrace dead redrive`` from their options to their exit code."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from broker.connection import Broker, BrokerClosed, BrokerUnavailable, NoAnswer, unix_ms
from broker.jetstream import ApiError
from deploy.replay import report
from deploy.replay.copies import ChangeError, parse_changes
from deploy.replay.finding import Finding, Found, find
from deploy.replay.letters import Letter, drop
from deploy.replay.pacing import Pace
from deploy.replay.replays import How, Replays
from deploy.replay.results import NOT_ALL_RAN, Result, Summary, exit_code, got_through, summarize
from deploy.replay.runner import running
from deploy.replay.wanted import Wanted
from schemas.config import Config
from schemas.errors import HeadraceError
from schemas.ids import ResponseId

CONNECT_S = 5.0  # someone sits and waits
STDOUT = Path("-")

T = TypeVar("T")


class ReplayError(Exception):
    """The message is for the operator."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the operator asked for. ``onto``: a model's name; ``settings``: NAME=VALUE of sampling.
    ``redrive``: letters go when their jobs have got through; ``agree`` is asked before that."""

    wanted: Wanted
    onto: str | None = None
    settings: tuple[str, ...] = ()
    pace: Pace = field(default_factory=Pace)
    keep_class: bool = False
    poison: bool = False
    show_text: bool = False
    dry_run: bool = False
    json_file: Path | None = None
    redrive: bool = False
    agree: Callable[[Finding], bool] = lambda finding: True


class Report(msgspec.Struct, frozen=True):
    summary: Summary
    results: list[Result]


def replay(config: Config, order: Order) -> int:
    """The exit code. Raises ``ReplayError``."""
    return on_broker(config, lambda broker: replay_on(broker, config, order))


async def replay_on(broker: Broker, config: Config, order: Order) -> int:
    """As ``replay``. Raises what the broker brings, too."""
    how = _how(order)
    finding = await find(broker, order.wanted, with_outcomes=order.dry_run)
    finding.found.sort(key=lambda found: found.stored_unix_ms)
    if order.redrive:
        _keep_dead(finding)
    _tell(finding, order)
    out = report.console()
    if order.dry_run:
        if order.json_file is not None:
            _write(order.json_file, [_listed(found) for found in finding.found])
        else:
            report.show_finding(out, finding, unix_ms())
        return 0
    if not finding.found:
        return NOT_ALL_RAN if finding.unreadable else 0
    if not order.agree(finding):
        return NOT_ALL_RAN
    results = await _run(broker, config, order, how, finding.found)
    summary = summarize(results, len(finding.found))
    if order.json_file is not None:
        _write(order.json_file, Report(summary, results))
    if order.json_file != STDOUT:
        report.show(out, results, summary)
    return exit_code(summary) or (NOT_ALL_RAN if finding.unreadable else 0)


def on_broker(config: Config, work: Callable[[Broker], Awaitable[T]]) -> T:
    """Raises ``ReplayError``."""

    async def run() -> T:
        broker = await Broker.connect(config.nats, name="replay", wait_s=CONNECT_S)
        try:
            return await work(broker)
        finally:
            await broker.close()

    try:
        return asyncio.run(run())
    except (ApiError, BrokerUnavailable, HeadraceError) as error:
        raise ReplayError(_said(error)) from error
    except BaseExceptionGroup as group:
        known, others = group.split((ApiError, BrokerClosed, HeadraceError, ReplayError))
        if known is None or others is not None:
            raise
        raise ReplayError(_said(_first(known))) from group


def _how(order: Order) -> How:
    try:
        changes = parse_changes(order.settings)
    except ChangeError as error:
        raise ReplayError(str(error)) from error
    return How(
        changes=changes,
        pace=order.pace,
        keep_class=order.keep_class,
        poison=order.poison,
        show_text=order.show_text,
    )


def _keep_dead(finding: Finding) -> None:
    for found in finding.found:
        if found.letter is None:
            finding.unreadable.append((found.response, "there is no dead letter of it"))
    finding.found = [found for found in finding.found if found.letter is not None]


async def _run(
    broker: Broker, config: Config, order: Order, how: How, all_found: Sequence[Found]
) -> list[Result]:
    async with running(broker, config) as runner:
        if order.onto is not None:
            how = replace(how, onto=runner.catalog.resolve(order.onto))
        with _progress(len(all_found)) as (on_begin, on_end):

            async def ended(found: Found, result: Result) -> None:
                on_end()
                if order.redrive and found.letter is not None and got_through(result):
                    await _drop(broker, found.letter)

            replays = Replays(broker, runner, how, on_begin=on_begin, on_end=ended)
            await _until_interrupted(replays.run(all_found))
        for response in runner.left:
            _warn(f"{response} could not be closed: it ends by its deadline")
    order_of = {found.response: number for number, found in enumerate(all_found)}
    return sorted(replays.results, key=lambda result: order_of[result.origin])


async def _drop(broker: Broker, letter: Letter) -> None:
    try:
        await drop(broker, letter)
    except (ApiError, HeadraceError) as error:
        _warn(f"the dead letter of {letter.response} is still there: {_said(error)}")


async def _until_interrupted(work: Awaitable[None]) -> None:
    """Ctrl-C ends the work in order; a second one ends the program."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        for each in signals:
            loop.remove_signal_handler(each)
        task.cancel()

    for each in signals:
        loop.add_signal_handler(each, stop)
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()  # where this was cancelled itself
        await asyncio.wait({task})
        for each in signals:
            loop.remove_signal_handler(each)
    if not task.cancelled():
        task.result()


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """What to call at each beginning and end. Shown on a terminal only."""
    err = Console(stderr=True)
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    last = TextColumn("{task.fields[running]} running")
    with Progress(*columns, last, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", total=total, running=0)
        running_now = 0

        def begin() -> None:
            nonlocal running_now
            running_now += 1
            progress.update(bar, running=running_now)

        def end() -> None:
            nonlocal running_now
            running_now -= 1
            progress.update(bar, running=running_now, advance=1)

        yield begin, end


class _Listed(msgspec.Struct, frozen=True):
    response: ResponseId
    stored_unix_ms: int
    model: str
    tenant: str
    priority: str
    lane: str
    prompt_tokens: int
    max_tokens: int
    outcome: str | None


def _listed(found: Found) -> _Listed:
    job = found.job
    return _Listed(
        response=found.response,
        stored_unix_ms=found.stored_unix_ms,
        model=job.model_name,
        tenant=job.tenant,
        priority=job.priority,
        lane=job.lane,
        prompt_tokens=found.prompt_tokens,
        max_tokens=job.sampling.max_tokens,
        outcome=found.outcome,
    )


def _tell(finding: Finding, order: Order) -> None:
    for response, why in finding.unreadable:
        _warn(f"{response}: {why}")
    if finding.more:
        _warn(f"only the first {order.wanted.limit} are taken: raise --limit, or ask for fewer")
    if not finding.found and not finding.unreadable:
        _warn("nothing matches")


def _write(file: Path, value: object) -> None:
    data = msgspec.json.format(msgspec.json.encode(value)) + b"\n"
    if file == STDOUT:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    try:
        file.write_bytes(data)
    except OSError as error:
        raise ReplayError(f"{file}: {error.strerror}") from error


def _warn(text: str) -> None:
    click.echo(f"headrace: {text}", err=True)


def _said(error: BaseException) -> str:
    if isinstance(error, NoAnswer):
        if error.why == "no_responders":
            return "nothing is stored on this NATS server yet: has Headrace run there?"
        return f"the NATS server does not answer ({error})"
    return error.message if isinstance(error, HeadraceError) else str(error)


def _first(group: BaseExceptionGroup) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
