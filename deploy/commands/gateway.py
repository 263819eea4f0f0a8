"""``headrace gateway``."""

from __future__ import annotations

import sys

import click

from deploy.commands.group import Invocation


@click.command()
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Run one gateway until SIGTERM, which lets running responses finish first.

    Its settings are [gateway], [nats], [redis], [security] and [logging]; `headrace config check` shows them.
    """
    config = invocation.config()
    from gateway.main import run

    sys.exit(run(config))
