"""What processes cost, as the kernel counts it: to the nanosecond where ``/proc/<pid>/stat`` has ticks of
10 ms."""

from __future__ import annotations

import os
import resource
from pathlib import Path


def cpu_s(pid: int) -> float:
    """Of all threads that it has now. One that ended took its share along: measure while none comes or
    goes."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total_ns / 1e9


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def machine_idle_s() -> float:
    """Of all cores, in ticks of 10 ms. Over cores times seconds: what the machine had left."""
    user_nice_system_idle_wait = Path("/proc/stat").read_text().splitlines()[0].split()[1:6]
    return sum(map(int, user_nice_system_idle_wait[3:])) / os.sysconf("SC_CLK_TCK")


def pin(pid: int, core: int) -> None:
    """All threads that it has now."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})
