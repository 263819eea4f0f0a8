"""The worker process: from the configuration to an exit code."""

from __future__ import annotations

import msgspec

from broker.connection import NoAnswer
from broker.process import Shutdown, run_process
from schemas.config import Config
from workers.engine.base import EngineDead
from workers.lifeline import Lifeline
from workers.worker import Worker


def run_guarded(lifeline_fd: int, given: bytes) -> int:
    """Runs one worker until SIGTERM or a failure; returns the exit code (0: drained, 1: failed). ``given``:
    the configuration as JSON."""
    config = msgspec.json.decode(given, type=Config)
    lifeline = Lifeline(lifeline_fd)

    async def main(shutdown: Shutdown) -> None:
        await Worker(config, lifeline=lifeline).run(shutdown)

    return run_process("worker", config, main, known_errors=(EngineDead, NoAnswer))
