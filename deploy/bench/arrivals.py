"""When conversations begin in an open loop. Pure, and the same for a seed however many processes share it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

from deploy.bench.plan import OpenLoop


def arrivals(load: OpenLoop, seed: int) -> Iterator[tuple[int, float]]:
    """Number and seconds since the beginning, without end."""
    if load.arrivals == "constant":
        yield from ((number, number / load.rate) for number in count())
    rng = random.Random(f"arrivals {seed}")
    at_s = 0.0
    for number in count():
        at_s += rng.expovariate(load.rate)
        yield number, at_s
