"""Ends vLLM's own processes when the process that started them is gone.

vLLM's engine core outlives a ``kill -9`` of its parent: it goes on holding the accelerator's memory, and
the restarted worker finds none. vLLM calls this function early in each process it starts, by the entry
point ``vllm.general_plugins``; one thread then waits for the parent's end, which the kernel reports
whatever its cause. Must stay free of imports that cost.
"""

from __future__ import annotations

import os
import signal
from multiprocessing import connection, parent_process
from threading import Thread


def install() -> None:
    """In a process made by ``multiprocessing``: live no longer than the parent. Elsewhere: nothing."""
    parent = parent_process()
    if parent is not None:
        Thread(target=_follow, args=(parent.sentinel,), name="orphan-guard", daemon=True).start()


def _follow(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)  # nobody is left to tell, and cleaning up could hang
