"""Numbers with their intervals: exponents of power laws and ratios, by bootstrap over repeated timings."""

from collections.abc import Callable, Mapping, Sequence
from math import exp, isfinite, log
from random import Random
from statistics import fmean, median
from typing import NamedTuple

DRAWS = 1000  # of a bootstrap


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> bool:
        """Whether the whole interval lies in [low, high]."""
        return low <= self.low and self.high <= high

    def outside(self, low: float, high: float) -> bool:
        """Whether the whole interval lies outside [low, high]."""
        return self.high < low or self.low > high

    def fields(self) -> dict[str, float]:
        """As the fields of a row: ``value``, ``low``, ``high``."""
        return {"value": self.value, "low": self.low, "high": self.high}


Repeats = Mapping[int, Sequence[float]]  # length -> the same measurement, repeated


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of a line through (x, y) by least squares; 0 where all x are alike."""
    middle, height = fmean(x), fmean(y)
    spread = sum((a - middle) ** 2 for a in x)
    return sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0


def bootstrap(
    groups: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float], seed: int = 0
) -> Estimate:
    """``statistic`` of the medians of ``groups``, with its percentile interval.

    Each draw takes as many of every group's repeats as there are, with replacement (Efron 1979). The interval
    covers the scatter between repeats, not what disturbs all of them alike. A single repeat has no scatter:
    the interval is then the value itself.
    """
    random = Random(seed)
    value = statistic([median(group) for group in groups])
    if all(len(group) < 2 for group in groups):
        return Estimate(value, value, value)
    drawn = sorted(
        statistic([median(random.choices(group, k=len(group))) for group in groups]) for _ in range(DRAWS)
    )
    return Estimate(value, drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS) - 1])


def exponent(repeats: Repeats, seed: int = 0) -> Estimate:
    """n of ``y = c length^n``, by least squares on logarithms; needs two lengths, y above 0."""
    lengths = sorted(repeats)
    x = [log(length) for length in lengths]

    def fit(medians: Sequence[float]) -> float:
        return slope(x, [log(value) for value in medians])

    return bootstrap([repeats[length] for length in lengths], fit, seed)


def ratio(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Estimate:
    """The median of one over the median of the other."""
    return bootstrap([above, below], lambda medians: medians[0] / medians[1], seed)


def crossing(first: Repeats, second: Repeats, seed: int = 0) -> Estimate | None:
    """The length from which ``first`` is the greater one, interpolated between lengths on logarithms.

    None where it never is. The smallest length measured where it is greater from the start. An end of the
    interval is infinite where the draws at that end do not cross.
    """
    lengths = sorted(set(first) & set(second))
    count = len(lengths)

    def find(medians: Sequence[float]) -> float:
        gaps = [log(a / b) for a, b in zip(medians[:count], medians[count:], strict=True)]
        if gaps[-1] <= 0:
            return float("inf")
        last = max((at for at in range(count) if gaps[at] <= 0), default=-1)
        if last < 0:
            return float(lengths[0])
        low, high = log(lengths[last]), log(lengths[last + 1])
        return exp(low + (high - low) * -gaps[last] / (gaps[last + 1] - gaps[last]))

    groups = [*(first[length] for length in lengths), *(second[length] for length in lengths)]
    found = bootstrap(groups, find, seed) if lengths else None
    return found if found is not None and isfinite(found.value) else None


# Two-sided 95 % quantiles of Student's t for 1..10 degrees of freedom; 2 beyond.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def regression(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """The slope of a line through (x, y), with the interval that its residuals give (Student's t).

    For quantities that repeat themselves, such as bytes, where scatter says nothing and curvature does. With
    two points there are no residuals: the interval is then the value itself.
    """
    value, count = slope(x, y), len(x)
    if count < 3:
        return Estimate(value, value, value)
    middle, height = fmean(x), fmean(y)
    spread = sum((a - middle) ** 2 for a in x)
    rest = sum((b - height - value * (a - middle)) ** 2 for a, b in zip(x, y, strict=True))
    half = (_T95[count - 3] if count < 13 else 2.0) * (rest / (count - 2) / spread) ** 0.5
    return Estimate(value, value - half, value + half)


def growth(by_length: Mapping[int, float]) -> Estimate:
    """n of ``y = c length^n`` for one exact value at each length; see `regression`."""
    lengths = sorted(by_length)
    return regression([log(length) for length in lengths], [log(by_length[length]) for length in lengths])


def over(values: Sequence[float]) -> Estimate:
    """The mean of independent values (seeds, sequences), with Student's t interval; alone it has none."""
    count, middle = len(values), fmean(values)
    if count < 2:
        return Estimate(middle, middle, middle)
    spread = (sum((value - middle) ** 2 for value in values) / (count - 1)) ** 0.5
    half = (_T95[count - 2] if count < 12 else 2.0) * spread / count**0.5
    return Estimate(middle, middle - half, middle + half)


def proportion(count: int, total: int) -> Estimate:
    """A share of ``total``, with Wilson's 95 % interval (1927)."""
    z, share = 1.96, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return Estimate(share, middle - half, middle + half)
