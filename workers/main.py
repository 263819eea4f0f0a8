"""The worker process: from the configuration to an exit code."""

from __future__ import annotations

import gc
from importlib.metadata import version

import msgspec

from broker import metrics
from broker.connection import NoAnswer
from broker.process import Shutdown, run_process
from schemas.config import Config
from workers.engine.base import EngineDead
from workers.lifeline import Lifeline
from workers.worker import Worker

COLLECT_AFTER = (20_000, 20, 20)  # Python's own: (700, 10, 10)


def run_guarded(lifeline_fd: int, restarts: int, given: bytes) -> int:
    """Runs one worker until SIGTERM or a failure; returns the exit code (0: drained, 1: failed).
    ``restarts``: how often its guardian has started it again. ``given``: the configuration as JSON."""
    config = msgspec.json.decode(given, type=Config)
    lifeline = Lifeline(lifeline_fd)

    async def main(shutdown: Shutdown) -> None:
        metrics.introduce("worker", version("headrace"))
        metrics.RESTARTS.inc(restarts)
        await Worker(config, lifeline=lifeline, on_loaded=_settle_memory).run(shutdown)

    return run_process("worker", config, main, known_errors=(EngineDead, NoAnswer))


def _settle_memory() -> None:
    """With vLLM loaded, a garbage collection looks at 640,000 objects for 0.3 s or more, and all streams of
    the worker stand still. What was made at the start stays: it need not be looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
