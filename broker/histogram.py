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


class StepTally:
    """Counts as such a histogram does, at 0.3 us a call, until ``hand_over`` puts it all into it."""

    def __init__(self, histogram: StepHistogram) -> None:
        self._histogram = histogram
        self._bounds = histogram._upper_bounds
        self._counts = [0] * len(self._bounds)
        self._total = 0.0

    def observe_many(self, amount: float, count: int) -> None:
        self._counts[bisect_left(self._bounds, amount)] += count
        self._total += amount * count

    def hand_over(self) -> None:
        histogram = self._histogram
        histogram._sum.inc(self._total)
        for bucket, count in zip(histogram._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        self._counts = [0] * len(self._bounds)
        self._total = 0.0
