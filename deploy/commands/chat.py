"""``headrace chat``."""

from __future__ import annotations

import sys

import click

from deploy.commands.group import CommandError


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The gateway.")
@click.option("--model", default=None, help="The model; the gateway's default otherwise.")
@click.option(
    "--api-key", envvar="HEADRACE_API_KEY", help="Where the gateway asks for one; others can see options."
)
def command(url: str, model: str | None, api_key: str | None) -> None:
    """Chat in the terminal, over the gateway's WebSocket.

    Ctrl-C stops the answer, Ctrl-D leaves. With piped input, each line is a question, and each answer is
    one line.
    """
    from deploy import chat

    try:
        if sys.stdin.isatty():
            chat.converse(url, model, api_key)
        else:
            chat.answer_lines(url, model, sys.stdin, api_key)
    except chat.ChatError as error:
        raise CommandError(str(error)) from error
