"""``headrace dead``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from deploy.commands import replay
from deploy.commands.group import CommandError, Invocation

if TYPE_CHECKING:
    from deploy.replay.dead import Choice
    from deploy.replay.finding import Finding
    from deploy.replay.run import Order

_SELECTING = ("since", "until", "model", "tenant", "code")
_CODE = click.option("--code", help="Such as poison, invalid_job.")
_ALL = click.option("--all", "everything", is_flag=True, help="All there are.")
_YES = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def command() -> None:
    """Look at dead letters, run them again, drop them.

    A dead letter is a job that no worker could finish, kept for a week. Its client has been told of the
    failure; nothing here changes that: what is run again is a new response.
    """


@command.command(name="list")
@replay.selecting
@_CODE
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.pass_obj
def list_letters(invocation: Invocation, /, as_json: bool, **given: Any) -> None:
    """Show the dead letters there are, the oldest first."""
    from deploy.replay import dead

    with _told():
        dead.show_all(invocation.config(), _choice((), **given), as_json=as_json)


@command.command()
@click.argument("response")
@click.option("--show-text", is_flag=True, help="With the prompt's text.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def show(invocation: Invocation, response: str, show_text: bool, as_json: bool) -> None:
    """Show a dead letter: what was tried, by whom, and what it asks for."""
    from deploy.replay import dead

    with _told():
        dead.show_one(invocation.config(), replay.response_id(response), show_text=show_text, as_json=as_json)


@command.command()
@click.argument("responses", nargs=-1, metavar="[RESPONSE]...")
@replay.selecting
@_ALL
@_YES
@replay.running
@click.pass_obj
def redrive(invocation: Invocation, /, **given: Any) -> None:
    """Run dead letters again, each as a new response that names its origin.

    A letter goes when the new response has an answer, or a dead letter of its own. The first client has had
    its error and keeps it; its tenant can get the new response by its id. Those that killed their workers
    need --poison. Exit codes are those of `headrace replay`.
    """
    sys.exit(replay.run(invocation, order_of(**given)))


def order_of(*, everything: bool, yes: bool, responses: tuple[str, ...], **given: Any) -> Order:
    """Raises ``CommandError``."""
    _some(responses, everything, given)

    def agree(finding: Finding) -> bool:
        killers = sum(found.letter is not None and found.letter.is_poison for found in finding.found)
        warning = f", {killers} of which killed their workers" if killers and given["poison"] else ""
        return yes or _agrees(f"Run {len(finding.found)} dead letters again{warning}?")

    return replay.order_of(responses=responses, dead=not responses, redrive=True, agree=agree, **given)


@command.command()
@click.argument("responses", nargs=-1, metavar="[RESPONSE]...")
@replay.selecting
@_CODE
@_ALL
@_YES
@click.pass_obj
def drop(
    invocation: Invocation, /, responses: tuple[str, ...], everything: bool, yes: bool, **given: Any
) -> None:
    """Delete dead letters for good. Their jobs stay in JOBS for as long as it keeps them."""
    from deploy.replay import dead

    _some(responses, everything, given)
    with _told():
        dropped = dead.drop_all(
            invocation.config(),
            _choice(responses, **given),
            lambda count: yes or _agrees(f"Delete {count} dead letters?"),
        )
    click.echo(f"{dropped} dropped.")


def _choice(responses: tuple[str, ...], *, code: str | None, **given: Any) -> Choice:
    from deploy.replay.dead import Choice

    return Choice(replay.wanted(responses, **given), code)


def _some(responses: tuple[str, ...], everything: bool, given: dict[str, Any]) -> None:
    """To take all of them must be said, so that an option that was forgotten does not mean it."""
    if not responses and not everything and not any(map(given.get, _SELECTING)):
        raise CommandError("say which: response ids, options that select, or --all")


def _agrees(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandError("there is nobody to ask: add --yes")
    return click.confirm(question, err=True)


@contextmanager
def _told() -> Iterator[None]:
    from deploy.replay.run import ReplayError

    try:
        yield
    except ReplayError as error:
        raise CommandError(str(error)) from error
