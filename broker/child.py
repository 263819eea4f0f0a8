"""Runs a command that cannot outlive the process that started it: `child.py PARENT_PID COMMAND…`.

A script of its own, run without site-packages (30 ms), because the death signal has to be asked for by
the child itself, between fork and exec, where the parent may run no Python code safely.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2): survives exec; sent when the parent's *thread* that forked us ends


def main() -> None:
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) is refused here")
    if os.getppid() != parent_pid:  # it died before the line above
        sys.exit("the parent process is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
