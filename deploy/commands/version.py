"""``headrace version``."""

from __future__ import annotations

from importlib.metadata import version

import click


@click.command()
def command() -> None:
    """Show the version."""
    click.echo(f"headrace {version('headrace')}")
