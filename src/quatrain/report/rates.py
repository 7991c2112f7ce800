"""The grid of learning rates: what each rate reached where they were compared, and which one was chosen."""

from typing import NamedTuple

from quatrain.report import numbers
from quatrain.report.gather import Comparison, Row, list_of, number
from quatrain.report.styles import Style
from quatrain.report.table import Table


class Rates(NamedTuple):
    """One model's line of the grid: what decides on validation by rate after ``tokens``, first seed."""

    style: Style
    losses: dict[float, float]
    chosen: frozenset[float]
    tokens: float | None


def _line(comparison: Comparison, mixer: str) -> Rates | None:
    runs = comparison.runs(mixer, "valid")
    if not runs:
        return None
    seed = min(run[2] for run in runs)
    curves: dict[float, list[Row]] = {run[1]: rows for run, rows in runs.items() if run[2] == seed}
    results = [row for row in comparison.of("result", mixer) if int(number(row, "seed") or 0) == seed]
    chosen = frozenset(rate for row in results if (rate := number(row, "lr")) is not None)
    ends = {rate: number(rows[-1], "step") or 0.0 for rate, rows in curves.items()}
    # The rates were compared where those that were not trained on end; one that ends earlier diverged.
    rung = max((end for rate, end in ends.items() if rate not in chosen), default=max(ends.values()))
    losses, tokens = {}, None
    for rate, rows in curves.items():
        for row in rows:
            loss = comparison.judged(row)
            if number(row, "step") == rung and loss is not None:
                losses[rate], tokens = loss, number(row, "tokens")
    return Rates(comparison.style(mixer), losses, chosen, tokens)


def rate_grid(comparison: Comparison) -> list[Rates]:
    """One line per model that has a validation loss, in the order of the comparison."""
    lines = (_line(comparison, mixer) for mixer in comparison.mixers)
    return [line for line in lines if line is not None]


def rate_table(comparison: Comparison) -> Table:
    """The grid as strings: ``*`` marks the chosen rate, a dash one that did not get there. Can be empty."""
    lines = rate_grid(comparison)
    if not lines:
        return Table((), ())
    asked = [
        float(rate) for rate in list_of(comparison.about, "learning_rates") if isinstance(rate, int | float)
    ]
    rates = sorted({rate for line in lines for rate in line.losses}.union(asked))
    rows = []
    for line in lines:
        shown = (
            comparison.measure.show(line.losses[rate]) if rate in line.losses else numbers.DASH
            for rate in rates
        )
        cells = [text + "*" * (rate in line.chosen) for rate, text in zip(rates, shown, strict=True)]
        rows.append(
            (line.style.name, *cells, numbers.DASH if line.tokens is None else numbers.count(line.tokens))
        )
    return Table(
        ("Model", *(numbers.rate(rate) for rate in rates), f"after {comparison.words.step}s"), tuple(rows)
    )
