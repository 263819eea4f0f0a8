"""How long prompts, answers and pauses are: a number, or a distribution written as ``kind:parameters``."""

from __future__ import annotations

import math
import random

import msgspec

_FORMS = "N, uniform:LOW-HIGH, lognormal:MEDIAN,SIGMA[,MOST] or exponential:MEAN[,MOST]"
_MOST = 10.0  # times the median or mean, where the text does not say: a tail that no model's context holds


class Fixed(msgspec.Struct, frozen=True, tag="fixed"):
    value: float

    def sample(self, rng: random.Random) -> float:
        return self.value


class Uniform(msgspec.Struct, frozen=True, tag="uniform"):
    low: float
    high: float

    def sample(self, rng: random.Random) -> float:
        return rng.uniform(self.low, self.high)


class Lognormal(msgspec.Struct, frozen=True, tag="lognormal"):
    """``sigma`` is of the logarithm: 0.5 has its p95 at 2.3 medians. Beyond ``most``: ``most``."""

    median: float
    sigma: float
    most: float

    def sample(self, rng: random.Random) -> float:
        return min(self.most, rng.lognormvariate(math.log(self.median), self.sigma))


class Exponential(msgspec.Struct, frozen=True, tag="exponential"):
    """Beyond ``most``: ``most``."""

    mean: float
    most: float

    def sample(self, rng: random.Random) -> float:
        return min(self.most, rng.expovariate(1 / self.mean))


Distribution = Fixed | Uniform | Lognormal | Exponential


def parse(text: str) -> Distribution:
    """Raises ``ValueError`` with what was expected."""
    kind, separator, rest = text.partition(":")
    try:
        if not separator:
            return _not_negative(Fixed(float(kind)))
        match kind:
            case "fixed":
                return _not_negative(Fixed(float(rest)))
            case "uniform":
                low, high = (float(part) for part in rest.split("-"))
                return _not_negative(Uniform(low, high))
            case "lognormal":
                median, sigma, *most = (float(part) for part in rest.split(","))
                return _not_negative(Lognormal(median, sigma, _only(most, _MOST * median)))
            case "exponential":
                mean, *most = (float(part) for part in rest.split(","))
                return _not_negative(Exponential(mean, _only(most, _MOST * mean)))
    except ValueError as error:
        raise ValueError(f"{text!r} is no length: expected {_FORMS}") from error
    raise ValueError(f"{text!r} is no length: expected {_FORMS}")


def whole(distribution: Distribution, rng: random.Random) -> int:
    """A sample as a count, 1 at least."""
    return max(1, round(distribution.sample(rng)))


def _only(given: list[float], otherwise: float) -> float:
    if len(given) > 1:
        raise ValueError("too many parameters")
    return given[0] if given else otherwise


def _not_negative(distribution: Distribution) -> Distribution:
    values = msgspec.structs.astuple(distribution)
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError("negative or not finite")
    if isinstance(distribution, Uniform) and distribution.low > distribution.high:
        raise ValueError("the low end is above the high one")
    if isinstance(distribution, Lognormal) and distribution.median == 0:
        raise ValueError("a median of zero")
    if isinstance(distribution, Exponential) and distribution.mean == 0:
        raise ValueError("a mean of zero")
    return distribution
