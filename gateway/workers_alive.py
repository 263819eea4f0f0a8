"""Shows how many workers each model has, and forgets a model that was retired. Must not know requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from broker import metrics
from broker.presence import Roster
from gateway.catalog import Catalog

LOOK_S = 30.0  # who comes and goes is seen at once
RETIRED_S = 3600.0  # without a worker and a job: an alert has said by then all that it can


class WorkersAlive:
    """``has_jobs``: some of this model wait, or are with a worker."""

    def __init__(self, catalog: Catalog, roster: Roster, has_jobs: Callable[[str], bool]) -> None:
        self._catalog = catalog
        self._has_jobs = has_jobs
        self._idle_since_s: dict[str, float] = {}  # by model, without workers and jobs
        self._shown: set[str] = set()
        self._changed = asyncio.Event()
        roster.on_change(self._changed.set)

    async def run(self) -> None:
        """Never returns."""
        while True:
            self._changed.clear()
            self._show(self._catalog.workers(), time.monotonic())
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass  # time has passed, which counts as well

    def _show(self, workers: dict[str, int], now_s: float) -> None:
        idle = {name for name, count in workers.items() if not count and not self._has_jobs(name)}
        self._idle_since_s = {name: self._idle_since_s.get(name, now_s) for name in idle}
        retired = {name for name, since_s in self._idle_since_s.items() if now_s - since_s >= RETIRED_S}
        shown = workers.keys() - retired
        for name in shown:
            metrics.WORKERS_ALIVE.labels(model=name).set(workers[name])
        for name in self._shown - shown:
            metrics.WORKERS_ALIVE.remove(name)
        self._shown = shown
