"""The worker process as its guardian starts it: ``python -m workers FD RESTARTS``, with the configuration as
JSON on its standard input. Must import nothing at the top: an engine's own processes may import this file."""

from __future__ import annotations

if __name__ == "__main__":
    import sys

    from workers.main import run_guarded

    sys.exit(run_guarded(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer.read()))
