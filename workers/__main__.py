"""The worker process as its guardian starts it: ``python -m workers FD RESTARTS``, with the configuration as
JSON on its standard input. Must import nothing at the top: an engine's own processes may import this file."""

from __future__ import annotations

if __name__ == "__main__":
    import sys

    from workers.main import run_guarded

    restarts = int(sys.argv[2]) if len(sys.argv) > 2 else 0  # a guardian from before an upgrade tells none
    sys.exit(run_guarded(int(sys.argv[1]), restarts, sys.stdin.buffer.read()))
