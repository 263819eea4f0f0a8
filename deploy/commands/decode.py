"""``headrace decode`` as click sees it (``deploy/cli.py`` runs the plain form without click)."""

from __future__ import annotations

import sys

import click

from deploy.decode import decode_stdin


@click.command()
def command() -> None:
    """Turn MessagePack on stdin into JSON on stdout, one line a message, of any version and without a schema.

    Made for `nats sub 'hr.>' --translate 'headrace decode'`. What is not MessagePack gives an error object
    and exit code 1.
    """
    sys.exit(decode_stdin())
