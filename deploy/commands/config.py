"""``headrace config check``: what is in force, and where it was set."""

from __future__ import annotations

import json
import os
import re

import click
import msgspec

from broker import settings
from deploy.commands.group import CommandError, Invocation

_SECRET_KEY = re.compile(r"secret|password|token$|api_key", re.IGNORECASE)


@click.group()
def command() -> None:
    """Explain the configuration."""


@command.command()
@click.pass_obj
def check(invocation: Invocation) -> None:
    """Show every setting in force and where it was set; exit code 2, with everything wrong, otherwise."""
    try:
        loaded = settings.read(invocation.config_file, os.environ)
    except settings.ConfigError as error:
        raise CommandError(str(error)) from error
    shown = [
        (section, key, masked(key, value), loaded.origins.get((section, key), "default"))
        for section, key, value in settings.shown_values(loaded.config)
    ]
    width = max(len(f"{key} = {value}") for _, key, value, _ in shown)
    heading = ""
    for section, key, value, origin in shown:
        if section != heading:
            click.echo(f"{'' if not heading else chr(10)}[{section}]")
            heading = section
        click.echo(f"{f'{key} = {value}':<{width}}  # {origin}")


def masked(key: str, value: object) -> str:
    """As in a TOML file, but without secrets."""
    if isinstance(value, str):
        if value and _SECRET_KEY.search(key):
            value = "****"
        if key == "url" or "://" in value:
            value = settings.masked_urls(value)
    return json.dumps(value, ensure_ascii=False, default=msgspec.to_builtins)
