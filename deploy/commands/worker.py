"""``headrace worker``."""

from __future__ import annotations

import sys

import click

from deploy.commands.group import Invocation


@click.command()
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Run one worker until SIGTERM, which lets running responses finish first. A worker that dies or
    hangs is started again.

    Its settings are [worker], [vllm] or [sim], [nats], [security], [logging] and [tracing];
    `headrace config check` shows them.
    """
    config = invocation.config()
    from workers.guardian import run

    sys.exit(run(config))
