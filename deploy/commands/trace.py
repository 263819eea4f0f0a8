"""``headrace trace``."""

from __future__ import annotations

import click

from deploy.commands.group import CommandError, Invocation


@click.command()
@click.argument("response")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--show-text", is_flag=True, help="The request's and the answer's words, too.")
@click.pass_obj
def command(invocation: Invocation, response: str, as_json: bool, show_text: bool) -> None:
    """Show the whole life of RESPONSE: its job, every worker that had it, where its time went, how it ended.

    It is read from the broker ([nats]): from the queue, the reply log and the dead letters, for as long as
    they are kept. Works for a response that runs as for one that has ended.
    """
    import msgspec
    from rich.console import Console

    from deploy.trace.read import TraceError, trace
    from deploy.trace.view import show

    try:
        traced = trace(invocation.config().nats, response, show_text=show_text)
    except TraceError as error:
        raise CommandError(str(error)) from error
    if as_json:
        click.echo(msgspec.json.encode(traced).decode())
    else:
        show(traced.life, traced.words, Console(highlight=False))
