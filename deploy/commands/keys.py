"""``headrace keys``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from deploy.commands.group import CommandError, Invocation

if TYPE_CHECKING:
    from deploy.keys import ShownKey

_LIMIT = click.IntRange(min=0)
_LIMIT_HELP = "0: no limit. Left out: the one of [limits]."


@click.group()
def command() -> None:
    """Make, list and revoke API keys.

    They live on the broker ([nats]) and count at once on every gateway whose auth.methods holds "keys".
    """


@command.command()
@click.argument("tenant")
@click.option("--name", default="", help="What it is for.")
@click.option("--requests-per-minute", type=_LIMIT, help=_LIMIT_HELP)
@click.option("--tokens-per-minute", type=_LIMIT, help=f"Of prompts and answers. {_LIMIT_HELP}")
@click.option("--concurrent-responses", type=_LIMIT, help=_LIMIT_HELP)
@click.option(
    "--expires-in-days", type=click.FloatRange(min=0, min_open=True, max=36_500), help="Else never."
)
@click.option("--quiet", is_flag=True, help="Print the key and nothing else.")
@click.pass_obj
def create(
    invocation: Invocation,
    tenant: str,
    name: str,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent_responses: int | None,
    expires_in_days: float | None,
    quiet: bool,
) -> None:
    """Make an API key for TENANT. It is shown once and cannot be read again."""
    from deploy import keys
    from schemas.quota import OwnQuota

    quota = OwnQuota(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_responses=concurrent_responses,
    )
    lives_s = None if expires_in_days is None else expires_in_days * 86_400
    with _told():
        key_id, text = keys.create(invocation.config(), tenant, name=name, quota=quota, lives_s=lives_s)
    click.echo(text)
    if not quiet:
        click.echo(f"Key {key_id} of tenant {tenant}. Keep it now: it is not shown again.", err=True)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.pass_obj
def list_keys(invocation: Invocation, as_json: bool) -> None:
    """Show the keys there are, without their secrets."""
    import msgspec

    from deploy import keys

    with _told():
        known = keys.known(invocation.config())
    if as_json:
        click.echo(msgspec.json.encode(known).decode())
        return
    for key in known:
        click.echo("  ".join(_words(key)))


@command.command()
@click.argument("key")
@click.pass_obj
def revoke(invocation: Invocation, key: str) -> None:
    """End KEY, its id or the whole key, for good and at once: its connections are closed, too."""
    from deploy import keys

    with _told():
        keys.revoke(invocation.config(), key)
    click.echo("Revoked.")


@contextmanager
def _told() -> Iterator[None]:
    from deploy.keys import KeysError

    try:
        yield
    except KeysError as error:
        raise CommandError(str(error)) from error


def _words(key: ShownKey) -> Iterator[str]:
    yield key.id
    yield key.tenant
    yield f"made {_day(key.created_unix_ms)}"
    if key.expires_unix_ms is not None:
        yield f"{'expired' if key.expired else 'expires'} {_day(key.expires_unix_ms)}"
    for limit, value in _limits(key):
        yield f"{limit}={value}"
    if key.name:
        yield key.name


def _limits(key: ShownKey) -> Iterator[tuple[str, int]]:
    from msgspec.structs import asdict

    yield from ((limit, value) for limit, value in asdict(key.quota).items() if value is not None)


def _day(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
