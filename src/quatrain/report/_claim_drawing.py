"""What the pictures of the claims' page share: rows to points, looks, and one kind of chart."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quatrain.report import numbers
from quatrain.report.charts import Axis, Drawing, Point, Spec, lines
from quatrain.report.figures import Legend
from quatrain.report.styles import STYLES, Style

Row = Mapping[str, Any]
Found = Mapping[str, Sequence[Row]]  # kind -> rows
ORDER = ("rnn", "lstm", "attention", "s6", "s4d", "gru")
LOOKS = (  # of lines that share an architecture's colour
    ((1, 0), "circle"),
    ((7, 3), "square"),
    ((2, 2), "triangle-up"),
    ((10, 3, 2, 3), "diamond"),
    ((5, 2, 1, 2), "triangle-down"),
)


def of(found: Found, kind: str, **fields: object) -> list[Row]:
    """Rows of a kind whose fields are these."""
    return [row for row in found.get(kind, ()) if all(row.get(key) == value for key, value in fields.items())]


def family(mixer: str, names: Sequence[str]) -> list[Style]:
    """Lines of one architecture: its colour, told apart by dash and mark."""
    looks = [LOOKS[at % len(LOOKS)] for at in range(len(names))]
    colour = STYLES[mixer].colour
    return [Style(name, colour, dash, shape) for name, (dash, shape) in zip(names, looks, strict=True)]


def series(rows: Iterable[Row], style: Style, x: str, y: str, scale: float = 1.0) -> list[Point]:
    found = []
    for row in sorted(rows, key=lambda row: float(row[x])):
        value = row.get(y)
        if isinstance(value, int | float) and value > 0:
            found.append(Point(style.name, float(row[x]), scale * float(value)))
    return found


def legend_of(styles: Sequence[Style], remarks: Mapping[str, str] | None = None) -> tuple[Legend, ...]:
    return tuple(Legend(style, (remarks or {}).get(style.name, "")) for style in styles)


def exponents(found: Found, of_: str, **fields: object) -> dict[str, str]:
    """``n = 1.02`` by the name of the architecture."""
    return {
        STYLES[row["mixer"]].name: f"n = {row['value']:.2f}"
        for row in of(found, "exponent", of=of_, **fields)
        if row.get("mixer") in STYLES
    }


def four(found: Found, kind: str, x: str, y: str, scale: float = 1.0, **fields: object) -> list[Point]:
    points: list[Point] = []
    for mixer in ORDER:
        points += series(of(found, kind, mixer=mixer, **fields), STYLES[mixer], x, y, scale)
    return points


def styles_of(points: Sequence[Point]) -> list[Style]:
    names = {point.name for point in points}
    return [STYLES[mixer] for mixer in ORDER if STYLES[mixer].name in names]


def by_length(points: list[Point], styles: list[Style], y: Axis, tip: tuple[str, str, str], x: str) -> Spec:
    tips = [("x", x, ",d"), tip]
    return lines(Drawing(styles, points, Axis(f"{x} (tokens)", "contexts"), y, tips, height=230))


def sized(points: list[Point]) -> list[Point]:
    return [point._replace(text=numbers.size(point.y)) for point in points]


def spaced(points: list[Point]) -> list[Point]:
    """Marks at even distances, where points lie dense."""
    step = max((point.x for point in points), default=0.0) / 10
    found: list[Point] = []
    for point in points:
        if not found or found[-1].name != point.name or point.x - found[-1].x >= step:
            found.append(point)
    return found


def _two(mixer: str, names: tuple[str, str]) -> dict[bool, Style]:
    return dict(zip((True, False), family(mixer, names), strict=True))


def ways(
    found: Found, kind: str, look: str, names: tuple[str, str], y: str, scale: float = 1.0, **fields: object
) -> tuple[list[Style], list[Point]]:
    styles, points = _two(look, names), []
    for fused, style in styles.items():
        points += series(of(found, kind, fused=fused, **fields), style, "length", y, scale)
    return list(styles.values()), points
