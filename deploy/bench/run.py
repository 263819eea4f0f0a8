"""``headrace bench``: the steps of a run one after the other, and where its result goes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console

from deploy.bench import progress, table
from deploy.bench.controller import BenchError, measure
from deploy.bench.plan import Load, Plan, address_of
from deploy.bench.ramp import Search, kept_up
from deploy.bench.report import as_json, report_of
from deploy.bench.report_html import as_html
from deploy.bench.result import Step

_ANSWER_S = 10.0
_FILE_WIDTH = 120  # of a table that goes into a file


@dataclass(frozen=True)
class Run:
    """``loads``: of the steps; the plan's is the first. ``search``: an automatic ramp from there instead."""

    plan: Plan
    loads: Sequence[Load]
    search: bool
    api_key: str
    title: str
    json_file: Path | None
    html_file: Path | None


def run(what: Run, command: Sequence[str]) -> bool:
    """Prints the result on stdout, and how it goes on stderr. Whether anything was completed. Raises
    ``BenchError``, and ``OSError`` where a result cannot be written."""
    for file in (what.json_file, what.html_file):
        if file is not None:
            file.open("ab").close()  # said now, and not when a long measurement is over
    began = datetime.now(UTC)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            steps = runner.run(_steps(what))
    except asyncio.CancelledError:
        raise BenchError("stopped at once by a second Ctrl-C") from None
    report = report_of(what.plan, steps, began=began, title=what.title, command=command)
    table.show(report, Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False))
    if what.json_file is not None:
        what.json_file.write_bytes(as_json(report))
    if what.html_file is not None:
        what.html_file.write_text(as_html(report))
    return any(step.responses.completed for step in steps)


async def _steps(what: Run) -> list[Step]:
    """A ramp ends early at a load that left responses unfinished: they would weigh on the next one."""
    steps: list[Step] = []
    loads = Search(what.plan.load) if what.search else iter(what.loads)
    with progress.shown(Console(stderr=True)) as watch, _stopped_by_interrupt() as stop:
        while not stop.is_set() and (load := next(loads, None)) is not None:
            plan = msgspec.structs.replace(what.plan, load=load)
            step = await measure(plan, what.api_key, watch=watch, stop=stop)
            steps.append(step)
            if isinstance(loads, Search):
                loads.measured(step)
            elif step.responses.unfinished and not kept_up(step):
                break
    return steps


@contextmanager
def _stopped_by_interrupt() -> Iterator[asyncio.Event]:
    """The first Ctrl-C ends the measurement and shows what there is; the second ends the program."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def interrupted() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def first_model(url: str, api_key: str) -> str:
    """The first that ``GET /v1/models`` names. Raises ``BenchError``."""
    try:
        address = address_of(url, "/v1/models")
    except ValueError as error:
        raise BenchError(str(error)) from error
    place = f"{'https' if address.tls else 'http'}://{address.authority}{address.path}"
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(place, headers=headers), timeout=_ANSWER_S
        ) as answer:
            models = json.load(answer)["data"]
            return str(models[0]["id"])
    except urllib.error.HTTPError as error:
        raise BenchError(f"{place} answers {error.code}; name the model with --model") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise BenchError(f"{place}: {reason}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise BenchError(f"{place} names no model; give --model") from error
