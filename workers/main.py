"""The worker process: from the configuration to an exit code."""

from __future__ import annotations

from broker.connection import NoAnswer
from broker.process import Shutdown, run_process
from schemas.config import Config
from workers.engine.base import EngineDead
from workers.worker import Worker


def run(config: Config) -> int:
    """Runs one worker until SIGTERM or a failure; returns the exit code (0: drained, 1: failed)."""

    async def main(shutdown: Shutdown) -> None:
        await Worker(config).run(shutdown)

    return run_process("worker", config, main, known_errors=(EngineDead, NoAnswer))
