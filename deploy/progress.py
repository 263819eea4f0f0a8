"""Shows what the supervisor does: a live table on a terminal, one line an event elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deploy.supervisor import Keeper, State

_STYLES: dict[State, str] = {"ready": "green", "crashed": "bold red", "stopped": "dim", "waiting": "dim"}

_MARKS: dict[State, str] = {"ready": "✓", "crashed": "✗"}


class Progress:
    """A ``supervisor.Report``. The table is there while parts start or stop; lines are there for good."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = False

    @contextmanager
    def table(self, keepers: list[Keeper]) -> Iterator[None]:
        """On a terminal, a table of these parts in place of lines."""
        if not self._console.is_terminal or self._live:
            yield
            return
        loop = asyncio.get_running_loop()
        spinner = Spinner("dots")
        live = Live(
            console=self._console,
            get_renderable=lambda: _table(keepers, spinner, loop.time()),
            refresh_per_second=8,
        )
        live.start()
        self._live = True
        try:
            yield
        finally:
            self._live = False
            with suppress(OSError):  # as in line()
                live.stop()

    def line(self, text: str) -> None:
        with suppress(OSError):  # the terminal has gone: what is running is still stopped in order
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def changed(self, keeper: Keeper) -> None:
        if self._live or keeper.state in ("crashed", "waiting"):
            return
        part = keeper.part
        if keeper.state == "starting":
            self.line(f"{part.id}: starting on port {part.port} (pid {keeper.pid})")
        elif keeper.state == "stopping" and part.drain_s:
            self.line(f"{part.id}: stopping, with up to {part.drain_s:g} s to finish its work")
        else:
            self.line(f"{part.id}: {keeper.state}")

    def crashed(self, keeper: Keeper, how: str, last_lines: list[str], retry_s: float | None) -> None:
        next_ = "giving up" if retry_s is None else f"starting it again in {retry_s:g} s"
        pid = f" (pid {keeper.pid})" if keeper.pid else ""
        self.line(f"{keeper.part.id}{pid} {how}; {next_}")
        for line in last_lines:
            self.line(f"    {line}")


def _table(keepers: list[Keeper], spinner: Spinner, now_s: float) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for keeper in keepers:
        busy = keeper.state in ("starting", "stopping")
        mark = spinner if busy else Text(_MARKS.get(keeper.state, "·"))
        state = Text(keeper.state, style=_STYLES.get(keeper.state, ""))
        note = f"port {keeper.part.port}"
        if busy:
            lines = keeper.last_lines()
            note = f"{now_s - keeper.state_since_s:.0f} s  {lines[-1][:90] if lines else ''}"
        table.add_row(mark, keeper.part.id, state, Text(note, style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(table)
