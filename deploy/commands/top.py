"""``headrace top``."""

from __future__ import annotations

import sys

import click

from deploy.commands.group import CommandError, Invocation


@click.command()
@click.option("--once", is_flag=True, help="Print one plain snapshot, whole, and end.")
@click.option("--json", "as_json", is_flag=True, help="One snapshot as JSON, and end.")
@click.option(
    "--interval", type=click.FloatRange(min=0.5, max=60), default=2.0, show_default=True, help="Seconds."
)
@click.pass_obj
def command(invocation: Invocation, once: bool, as_json: bool, interval: float) -> None:
    """Show queues, workers, tenants, recent failures and gateways, live; q leaves.

    All of it comes from NATS ([nats]), by about a dozen small requests each time: gateways and workers are
    not asked. Goes on when the broker is lost, and says so.
    """
    from rich.console import Console

    from deploy.top import terminal

    config = invocation.config().nats
    console = Console()
    try:
        if once or as_json:
            terminal.show_once(config, as_json=as_json, console=console)
        elif not sys.stdout.isatty():
            raise CommandError("this is no terminal: take --once or --json")
        else:
            terminal.show_live(config, interval, console)
    except terminal.TopError as error:
        raise CommandError(str(error)) from error
