"""A gateway process that shares its port, as its parent starts it: ``python -m gateway NUMBER COUNT FOLDER``,
with the configuration as JSON on its standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from gateway.main import run_sharing
from gateway.siblings import Place

if __name__ == "__main__":
    number, count, folder = sys.argv[1:]
    sys.exit(run_sharing(Place(int(number), int(count), Path(folder)), sys.stdin.buffer.read()))
