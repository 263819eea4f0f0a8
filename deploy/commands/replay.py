"""``headrace replay``; and the options it shares with ``headrace dead redrive``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.commands.group import CommandError, Invocation

if TYPE_CHECKING:
    from deploy.replay.pacing import Pace
    from deploy.replay.run import Order
    from deploy.replay.wanted import Wanted
    from schemas.ids import ResponseId

_POSITIVE = click.FloatRange(min=0, min_open=True)
_OUTCOMES = ("completed", "incomplete", "failed", "cancelled", "dead", "open")

_SELECTING = (
    click.option(
        "--since", metavar="WHEN", help="1h30m, 2d (so long ago), or an ISO time; UTC without a zone."
    ),
    click.option("--until", metavar="WHEN", help="Likewise; up to now otherwise."),
    click.option("--model", help="Name or token."),
    click.option("--tenant"),
    click.option(
        "--limit", type=click.IntRange(1), default=1000, show_default=True, help="So many, the oldest first."
    ),
)
_RUNNING = (
    click.option("--onto", metavar="MODEL", help="Run them on this model."),
    click.option(
        "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A sampling parameter; value as JSON."
    ),
    click.option(
        "--pace", type=click.Choice(["original"]), help="original: with the gaps that were between them."
    ),
    click.option("--speed", type=_POSITIVE, help="The same, so many times faster."),
    click.option("--rate", type=_POSITIVE, help="So many a second."),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 1024),
        help="Never more at once [8; with a pace 256]; without a pace, always so many.",
    ),
    click.option(
        "--keep-class", is_flag=True, help="In their own class and share, not behind everybody's work."
    ),
    click.option(
        "--poison", is_flag=True, help="Also what killed its workers: it may do so three times again."
    ),
    click.option(
        "--json",
        "json_file",
        type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
        metavar="FILE",
        help="Write the results here, too; -: to stdout, and nothing else there.",
    ),
    click.option("--show-text", is_flag=True, help="Show ids and text around where answers differ."),
    click.option("--dry-run", is_flag=True, help="Show what would run."),
)


def options(*all_options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in reversed(all_options):
            command = option(command)
        return command

    return add


selecting, running = options(*_SELECTING), options(*_RUNNING)


@click.command()
@click.argument("responses", nargs=-1, metavar="[RESPONSE]...")
@selecting
@click.option("--class", "priority", type=click.Choice(["interactive", "standard", "batch"]))
@click.option("--outcome", "outcomes", multiple=True, type=click.Choice(_OUTCOMES), help="May be repeated.")
@click.option("--dead", is_flag=True, help="Dead letters: the same as --outcome dead.")
@running
@click.pass_obj
def command(invocation: Invocation, /, **given: Any) -> None:
    """Run stored jobs again, each as a new response, and compare the answers with the original ones.

    By RESPONSE ids, or by what the options say; jobs are kept for a day, answers for two hours, dead letters
    for a week. Nothing is billed, counted against limits, cached or written into conversations. Ctrl-C closes
    what was begun.

    Exit code: 0 all ran and none differs, 1 some answer differs, 2 the command could not run, 3 something did
    not run or ended badly, 130 interrupted.
    """
    sys.exit(run(invocation, order_of(**given)))


def order_of(
    *,
    responses: tuple[str, ...],
    since: str | None,
    until: str | None,
    model: str | None,
    tenant: str | None,
    limit: int,
    priority: Any = None,
    outcomes: tuple[Any, ...] = (),
    dead: bool = False,
    pace: str | None,
    speed: float | None,
    rate: float | None,
    concurrency: int | None,
    **given: Any,
) -> Order:
    """Raises ``CommandError``."""
    from deploy.replay.run import Order

    selects = (since, until, model, tenant, priority, dead, *outcomes)
    if not responses and not any(selects):
        raise CommandError(
            "say which: response ids, or --since, --model, --tenant, --class, --outcome, --dead"
        )
    if sum(each is not None for each in (pace, speed, rate)) > 1:
        raise CommandError("--pace, --speed and --rate exclude each other")
    found = wanted(responses, since, until, model, tenant, limit, priority, [*outcomes, *["dead"] * dead])
    return Order(wanted=found, pace=_pace(pace, speed, rate, concurrency), **given)


def wanted(
    responses: tuple[str, ...],
    since: str | None,
    until: str | None,
    model: str | None,
    tenant: str | None,
    limit: int,
    priority: Any = None,
    outcomes: Sequence[Any] = (),
) -> Wanted:
    """Raises ``CommandError``."""
    from broker.connection import unix_ms
    from deploy.replay.wanted import Wanted, parse_when

    if responses and any((since, until, model, tenant, priority, outcomes)):
        raise CommandError("response ids and options that select do not go together")
    now = unix_ms()
    try:
        return Wanted(
            responses=tuple(dict.fromkeys(map(response_id, responses))),
            since_unix_ms=None if since is None else parse_when(since, now),
            until_unix_ms=now if until is None else parse_when(until, now),
            model=model,
            tenant=tenant,
            priority=priority,
            outcomes=frozenset(outcomes),
            limit=limit,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error


def response_id(text: str) -> ResponseId:
    """Raises ``CommandError``."""
    from schemas.errors import HeadraceError
    from schemas.ids import parse_response_id

    try:
        return parse_response_id(text)
    except HeadraceError as error:
        raise CommandError(f"{text!r} is no response id: they look like resp_01J…") from error


def run(invocation: Invocation, order: Order) -> int:
    """The exit code. Raises ``CommandError``."""
    from deploy.replay.run import ReplayError, replay

    try:
        return replay(invocation.config(), order)
    except ReplayError as error:
        raise CommandError(str(error)) from error


def _pace(pace: str | None, speed: float | None, rate: float | None, concurrency: int | None) -> Pace:
    from deploy.replay.pacing import AT_ONCE, PACED_AT_ONCE, Pace

    speed = 1.0 if pace == "original" else speed
    usual = AT_ONCE if speed is None and rate is None else PACED_AT_ONCE
    return Pace(speed=speed, rate=rate, at_once=concurrency or usual)
