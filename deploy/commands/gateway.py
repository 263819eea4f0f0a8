"""``headrace gateway``."""

from __future__ import annotations

import sys

import click
import msgspec

from deploy.commands.group import Invocation


@click.command()
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    help="That share the port, such as one a core; else gateway.processes.",
)
@click.pass_obj
def command(invocation: Invocation, processes: int | None) -> None:
    """Run one gateway until SIGTERM, which lets running responses finish first. Of several processes, one
    that dies is started again.

    Its settings are [gateway], [auth], [limits], [routing], [cache], [nats], [redis], [security],
    [logging] and [tracing]; `headrace config check` shows them.
    """
    config = invocation.config()
    if processes is not None:
        config = msgspec.structs.replace(
            config, gateway=msgspec.structs.replace(config.gateway, processes=processes)
        )
    if config.gateway.processes > 1:
        from deploy.gateways import run
    else:
        from gateway.main import run

    sys.exit(run(config))
