"""``headrace model fetch``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from deploy.commands.group import CommandError, Invocation


@click.group()
def command() -> None:
    """Prepare models."""


@command.command()
@click.argument("model", required=False)
@click.pass_obj
def fetch(invocation: Invocation, model: str | None) -> None:
    """Get MODEL (worker.model otherwise) onto this machine, so that workers start without waiting for it.

    MODEL is a hub id, a local folder, or smollm2. Quick when it is there already.
    """
    from workers.models import ModelError, resolve

    name = model or invocation.config().worker.model
    try:
        with _shown_progress() as progress:
            folder = resolve(name, progress)
    except ModelError as error:
        raise CommandError(str(error)) from error
    click.echo(f"Model {folder.name} is ready: {folder.path}")


@contextmanager
def _shown_progress() -> Iterator[Callable[[str, float | None], None]]:
    """A bar on a terminal; elsewhere a line whenever something else is being done. On stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(what: str, fraction: float | None) -> None:
            total = None if fraction is None else 1.0  # None: a bar that only moves
            bars.update(task, description=what, total=total, completed=fraction or 0.0)

        yield show


def _lines() -> Callable[[str, float | None], None]:
    before = ""

    def show(what: str, _fraction: float | None) -> None:
        nonlocal before
        if what != before:
            click.echo(what, err=True)
            before = what

    return show
