"""The tree of subcommands, and what they share: the configuration file and how an error is shown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from schemas.config import Config

# name: (module under deploy.commands, one line of help), in the order of the help text
_COMMANDS = {
    "up": ("up", "Start everything on this machine: broker, cache, workers and gateways."),
    "gateway": ("gateway", "Run one gateway: HTTP and WebSocket in, jobs out."),
    "worker": ("worker", "Run one worker: jobs in, tokens out."),
    "model": ("model", "Prepare models."),
    "keys": ("keys", "Make, list and revoke API keys."),
    "chat": ("chat", "Chat in the terminal, over a gateway's WebSocket."),
    "bench": ("bench", "Load a server, this one or another, and measure it."),
    "replay": ("replay", "Run stored jobs again and compare the answers."),
    "dead": ("dead", "Look at dead letters, run them again, drop them."),
    "trace": ("trace", "Show the whole life of one response."),
    "top": ("top", "Show what runs, waits and fails right now."),
    "decode": ("decode", "Turn MessagePack on stdin into JSON on stdout."),
    "config": ("config", "Explain the configuration."),
    "version": ("version", "Show the version."),
}


class CommandError(click.ClickException):
    """What the operator can mend: one line, no stack trace."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        for line in self.message.splitlines():
            click.echo(f"headrace: {line}", err=True)


@dataclass(frozen=True, slots=True)
class Invocation:
    """What stands before the subcommand."""

    config_file: Path | None

    def config(self) -> Config:
        from broker import settings

        try:
            return settings.load(self.config_file, os.environ)
        except settings.ConfigError as error:
            raise CommandError(str(error)) from error


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(f"deploy.commands.{_COMMANDS[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file; HEADRACE_CONFIG otherwise. Variables HEADRACE_<SECTION>__<KEY> override it.",
)
@click.pass_context
def headrace(ctx: click.Context, config_file: Path | None) -> None:
    """A durable token pipeline for chat models."""
    ctx.obj = Invocation(config_file)
