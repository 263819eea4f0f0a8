"""``headrace bench``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from deploy.commands.group import CommandError

_FILE = click.Path(path_type=Path, dir_okay=False)
_LENGTH = "N, uniform:LOW-HIGH, lognormal:MEDIAN,SIGMA[,MOST] or exponential:MEAN[,MOST]"


@click.command()
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option(
    "--api",
    type=click.Choice(["responses-ws", "responses", "chat", "completions"]),
    default="responses-ws",
    show_default=True,
    help="The Responses API over WebSocket or SSE, or the completions APIs of any OpenAI-compatible server.",
)
@click.option("--model", help="The first that /v1/models names otherwise.")
@click.option(
    "--concurrency",
    help="Closed loop: so many clients at once [8]; or a ramp: 1,2,4,8, or auto until past the knee.",
)
@click.option("--rate", help="Open loop: so many conversations a second; or a ramp likewise.")
@click.option("--arrivals", type=click.Choice(["poisson", "constant"]), default="poisson", show_default=True)
@click.option(
    "--duration", type=click.IntRange(1), default=20, show_default=True, help="Seconds of each step."
)
@click.option(
    "--warmup", type=click.IntRange(0), default=3, show_default=True, help="Seconds before, not counted."
)
@click.option("--conversations", type=click.IntRange(1), help="Exactly so many in each step, and no warm-up.")
@click.option("--prompt-tokens", default="128", show_default=True, help=f"Of each turn: {_LENGTH}.")
@click.option("--output-tokens", default="128", show_default=True, help="Likewise, of each answer.")
@click.option("--turns", default="1", show_default=True, help="Likewise, of each conversation.")
@click.option(
    "--think-time", default="0", show_default=True, help="Likewise, in seconds, before each further turn."
)
@click.option(
    "--shared-prefix",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Share of the first prompt that all conversations have in common.",
)
@click.option("--prompts", type=_FILE, help='JSON lines with "prompt" or "turns", and perhaps "max_tokens".')
@click.option(
    "--memory",
    type=click.Choice(["previous", "conversation"]),
    default="previous",
    show_default=True,
    help="How later turns name earlier ones (Responses API).",
)
@click.option("--temperature", type=click.FloatRange(0), help="The server's own otherwise.")
@click.option(
    "--ignore-eos/--no-ignore-eos", default=True, show_default=True, help="Answers have their full length."
)
@click.option("--extra", help='More fields for each request, as JSON: {"seed": 1}; null leaves a field out.')
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    help="That make the load. [1 on up to 7 cores, then one of every 4]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Of a response.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="For what is under way at the end.",
)
@click.option("--key-file", type=_FILE, help="Holds the API key; else it comes from HEADRACE_API_KEY.")
@click.option("--title", default="", help="Of the report.")
@click.option("--json", "json_file", type=_FILE, help="Write the result here.")
@click.option("--html", "html_file", type=_FILE, help="Write a report with plots here: one file.")
def command(**given: Any) -> None:
    """Load a server and measure it: Headrace at URL [http://127.0.0.1:8080], or any that speaks OpenAI's
    protocol.

    Several URLs are taken in turn. Ctrl-C ends the measurement and shows what there is. What the figures mean
    stands in deploy/BENCH.md.
    """
    from deploy.bench.controller import BenchError
    from deploy.bench.options import Options
    from deploy.bench.run import run

    try:
        completed = run(Options(**given).run(os.environ), ["headrace", *sys.argv[1:]])
    except BenchError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{error.filename or 'the result'}: {error.strerror}") from error
    sys.exit(0 if completed else 1)
