"""The command line: one module a subcommand, imported when it is run or asked for its help."""

from __future__ import annotations

from deploy.commands.group import headrace

__all__ = ["headrace"]
