"""``headrace up``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from deploy.commands.group import CommandError, Invocation


@click.command()
@click.option("--engine", type=click.Choice(["vllm", "sim"]), help="Real inference, or simulated.")
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Hub id, local folder, or a name that `headrace model fetch` knows; may be given several times.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Of each model.")
@click.option("--gateways", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), help="Of the first gateway; 0: any free one.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".headrace"),
    show_default=True,
    help="Queue, logs and run.json; kept for the next start.",
)
@click.pass_obj
def command(
    invocation: Invocation,
    engine: str | None,
    models: tuple[str, ...],
    workers: int,
    gateways: int,
    port: int | None,
    data_dir: Path,
) -> None:
    """Start everything on this machine: nats-server, Valkey, workers and gateways, each its own process.

    A crashed part is started again. Ctrl-C or SIGTERM stops all in order; a second Ctrl-C at once.
    """
    from broker.settings import ConfigError
    from deploy import up
    from deploy.datadir import DataDirBusy
    from deploy.parts import ProgramMissing
    from deploy.ports import PortTaken

    options = up.UpOptions(engine, models, port, workers, gateways, data_dir, invocation.config_file)
    try:
        status = up.run(options)
    except PortTaken as error:
        raise CommandError(f"{error}; choose another with --port") from error
    except (ConfigError, DataDirBusy, ProgramMissing, up.EngineMissing) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{error.filename or data_dir}: {error.strerror}") from error
    sys.exit(status)
