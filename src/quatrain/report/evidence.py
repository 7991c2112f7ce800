"""Whether two models differ, or noise made it look so: paired tests over seeds and over the test part."""

import math
from statistics import fmean, stdev
from typing import NamedTuple

from quatrain.report import numbers
from quatrain.report.gather import Comparison, Entry
from quatrain.report.numbers import NBSP
from quatrain.report.table import Table

# A rule of thumb, and called that on the page: where one seed was trained, closer models are called level.
LEVEL = 0.01
_LEAST = 8  # stretches of a test part, below which nothing is said about it

# Two-sided 95 % quantiles of Student's t for 1..30 degrees of freedom; the normal one beyond.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Difference(NamedTuple):
    """By how much one model is worse than another: the mean of ``n`` paired differences, and the half-width
    of its 95 % interval.
    """

    mean: float
    half: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval lies above zero."""
        return self.mean > self.half


def quantile(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t."""
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.96


def gap(better: Entry, worse: Entry) -> float:
    """How much worse the second is: of a share the difference, else (worse - better) / worse."""
    best, other = (entry.mean(entry.measure.key) or 0.0 for entry in (better, worse))
    if better.measure.percent:
        return abs(best - other)
    return (other - best) / other if other else 0.0


def apart(better: Entry, worse: Entry) -> str:
    """`gap` in words: ``3.1 %`` of a loss, ``1.2 points`` of a share."""
    measure = better.measure
    return measure.apart(better.mean(measure.key) or 0.0, worse.mean(measure.key) or 0.0)


def over_seeds(better: Entry, worse: Entry) -> Difference | None:
    """Paired t interval over common seeds, which read the same data in the same order; None below two."""
    measure = better.measure
    left = dict(zip(better.seeds, better.values.get(measure.key, ()), strict=False))
    right = dict(zip(worse.seeds, worse.values.get(measure.key, ()), strict=False))
    differences = [measure.merit(right[seed]) - measure.merit(left[seed]) for seed in left if seed in right]
    n = len(differences)
    if n < 2:
        return None
    return Difference(fmean(differences), quantile(n - 1) * stdev(differences) / math.sqrt(n), n)


def over_items(better: Entry, worse: Entry) -> float | None:
    """Half-width of the 95 % interval of a difference between two shares of n scored sequences.

    That is 1.96 sqrt(p (1 - p) / (n + 2) + q (1 - q) / (n + 2)) with one success and one failure added to
    each (Agresti and Caffo 2000), so that it is not 0 at the ends; as if the two were wrong independently of
    each other. None where the measure is no share or the count is unknown.
    """
    count = better.mean("test_items")
    if not better.measure.percent or not count:
        return None
    shares = [min(1.0, max(0.0, entry.mean(entry.measure.key) or 0.0)) for entry in (better, worse)]
    smooth = [(share * count + 1) / (count + 2) for share in shares]
    return 1.96 * math.sqrt(sum(share * (1 - share) for share in smooth) / (count + 2))


def over_text(better: Entry, worse: Entry) -> Difference | None:
    """Paired interval over stretches of the test part; None where fewer than eight are known of both.

    Neighbouring stretches are alike, so the variance of the mean takes in their covariances up to lag n^(1/3)
    (Newey and West 1987: Bartlett weights, which keep it positive). It covers the choice of the test text:
    another text from the same source. It does not cover the randomness of training.
    """
    n = len(better.pieces)
    if n < _LEAST or len(worse.pieces) != n:
        return None
    differences = [b - a for a, b in zip(better.pieces, worse.pieces, strict=True)]
    mean = fmean(differences)
    rest = [one - mean for one in differences]
    lags = int(n ** (1 / 3))
    variance = sum(one * one for one in rest) / (n - 1)
    for lag in range(1, lags + 1):
        both = sum(one * other for one, other in zip(rest[lag:], rest, strict=False)) / (n - 1)
        variance += 2 * (1 - lag / (lags + 1)) * both
    return Difference(mean, quantile(n - 1) * math.sqrt(max(0.0, variance) / n), n)


def level(better: Entry, worse: Entry) -> bool:
    """Whether two models are too close to tell apart: by paired seeds where there are several; for one seed
    where the test part does not separate them, or by rule of thumb, since training is random too.
    """
    seeds = over_seeds(better, worse)
    if seeds is not None:
        return not seeds.clear
    text, noise = over_text(better, worse), over_items(better, worse)
    near = gap(better, worse) < (LEVEL if noise is None else noise) or better.merit == worse.merit
    return near or (text is not None and not text.clear)


def leaders(order: list[Entry]) -> list[Entry]:
    """The best model and those that are level with it, of a ranking."""
    return [entry for at, entry in enumerate(order) if at == 0 or level(order[0], entry)]


def _interval(found: Difference | None) -> str:
    if found is None:
        return numbers.DASH
    return f"{numbers.loss(found.mean)} {numbers.PLUS_MINUS} {numbers.loss(found.half)}"


def differences(comparison: Comparison, entries: tuple[Entry, ...]) -> Table:
    """Every model against the best one: how far behind, by each test, and the verdict. Can be empty."""
    order = [entry for entry in entries if entry.status == "ok" and entry.merit < math.inf]
    rows = []
    for entry in order[1:]:
        seeds, text = over_seeds(order[0], entry), over_text(order[0], entry)
        behind = apart(order[0], entry).replace(NBSP, " ")
        noise = over_items(order[0], entry)
        drawn = _interval(text) if noise is None else f"{numbers.PLUS_MINUS} {100 * noise:.1f} points"
        verdict = "level" if level(order[0], entry) else "behind"
        rows.append((entry.style.name, behind, drawn, _interval(seeds), verdict))
    best = order[0].style.name if order else ""
    part = "over the test text" if comparison.task == "lm" else "over the test part"
    return Table((f"Behind {best}", "by", part, "over seeds", "verdict"), tuple(rows))
