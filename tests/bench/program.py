"""How a benchmark runs as a program: on uvloop, a table at the end, and the figures as JSON where asked."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop
from rich.console import Console

Figures = dict[str, Any]


def carry_out(
    measuring: Coroutine[Any, Any, Figures],
    show: Callable[[Figures, Console], None],
    args: argparse.Namespace,
) -> int:
    """``args.json``: the file that ``--json`` names, or None. The exit status."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measuring)
    show(figures, Console(soft_wrap=True, highlight=False))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0
