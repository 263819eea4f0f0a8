"""Makes the engine that the configuration names. The only place that knows all of them; imports only the
one that is asked for."""

from __future__ import annotations

import asyncio
import logging
import threading

import msgspec

from schemas.config import Config
from workers import models
from workers.engine.base import Engine

log = logging.getLogger(__name__)


async def make_engine(config: Config) -> Engine:
    """May take minutes where the model has to be fetched first. Raises ``EngineDead``."""
    worker = config.worker
    if worker.engine == "sim":
        from workers.engine.sim import SimEngine

        sim = msgspec.structs.replace(
            config.sim,
            name=worker.served_name or config.sim.name,
            slots=worker.slots or config.sim.slots,
        )
        folder = models.cache_dir() / "sim-tokenizers"
        return SimEngine(sim, hang_timeout_s=worker.hang_timeout_s, tokenizers_dir=folder)
    from workers.engine.vllm import VllmEngine

    return VllmEngine(
        await _resolve(worker.model),
        served_name=worker.served_name,
        slots=worker.slots,
        table=config.vllm,
        hang_timeout_s=worker.hang_timeout_s,
        canary_interval_s=worker.canary_interval_s,
    )


async def _resolve(model: str) -> models.ModelFolder:
    """In a daemon thread: a worker that is told to stop does not wait for a download."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[models.ModelFolder] = loop.create_future()
    steps = _LoggedSteps()

    def tell(folder: models.ModelFolder | None, error: Exception | None) -> None:
        if found.cancelled():
            return
        if error is not None:
            found.set_exception(error)
        elif folder is not None:
            found.set_result(folder)

    def work() -> None:
        folder: models.ModelFolder | None = None
        failure: Exception | None = None
        try:
            folder = models.resolve(model, steps)
        except Exception as error:  # carried over to the waiting task, whatever it is
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, folder, failure)

    threading.Thread(target=work, name="resolve-model", daemon=True).start()
    return await found


class _LoggedSteps:
    """A line in the log for every step of the preparation, and for every tenth of a long one."""

    def __init__(self) -> None:
        self._said: tuple[str, int] | None = None

    def __call__(self, what: str, fraction: float | None) -> None:
        tenths = int((fraction or 0.0) * 10)
        if self._said != (what, tenths):
            self._said = (what, tenths)
            log.info("%s%s", what, f": {tenths}0 %" if tenths else "")
