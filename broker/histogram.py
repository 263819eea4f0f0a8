"""A Prometheus histogram that takes many equal observations for the price of one.

The tokens of one engine step have all waited equally long. Must not know what is observed.
"""

from __future__ import annotations

from bisect import bisect_left

from prometheus_client import Histogram


class StepHistogram(Histogram):
    """0.5 us a call, however many: ``observe`` costs 1 to 2 us for each."""

    def observe_many(self, amount: float, count: int) -> None:
        """As ``observe(amount)``, ``count`` times; on the values that prometheus_client counts with."""
        self._sum.inc(amount * count)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(count)
