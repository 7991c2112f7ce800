"""What every figure of the page is made of: its type, and what turns rows into points and legends."""

from typing import NamedTuple

from quatrain.report import numbers
from quatrain.report.charts import Point, Spec
from quatrain.report.gather import Comparison, Row, number
from quatrain.report.styles import Style

Tip = tuple[str, str, str]  # field, title, format
Rule = tuple[str, float]  # a baseline and where it lies


class Legend(NamedTuple):
    """A line of a legend: the look and a remark behind the name (a fitted exponent)."""

    style: Style
    remark: str = ""


class Figure(NamedTuple):
    """One figure: ``panels`` are (subtitle, spec); without any, ``missing`` says what was not measured."""

    key: str
    title: str
    caption: str
    panels: tuple[tuple[str, Spec], ...]
    legend: tuple[Legend, ...] = ()
    missing: str = ""


def points_of(rows: list[Row], name: str, x: str, y: str, run: str = "") -> list[Point]:
    """The rows that have both numbers."""
    found: list[Point] = []
    for row in rows:
        at, value = number(row, x), number(row, y)
        if at is not None and value is not None:
            found.append(Point(name, at, value, run))
    return found


def styles_of(comparison: Comparison, values: list[Point]) -> list[Style]:
    seen = {value.name for value in values}
    return [style for style in (comparison.style(mixer) for mixer in comparison.mixers) if style.name in seen]


def legend_of(styles: list[Style]) -> tuple[Legend, ...]:
    return tuple(Legend(style) for style in styles)


def without(comparison: Comparison, styles: list[Style], what: str) -> str:
    """A sentence naming the models that have no values in a figure."""
    absent = [
        comparison.style(mixer).name for mixer in comparison.mixers if comparison.style(mixer) not in styles
    ]
    return f"{what} of {numbers.listed(absent)} not measured." if absent else ""
