"""Loss against position in the context: its chart, and what it says in a sentence."""

from quatrain.report.charts import Axis, Drawing, Point, lines
from quatrain.report.figures import Figure, Legend
from quatrain.report.gather import Comparison, number
from quatrain.report.reach import reaches, sentence

_SETTLED = 64  # positions after which a loss is no longer that of a start


def position(comparison: Comparison) -> Figure | None:
    """Mean loss by position in windows longer than those of training; None where it was not measured."""
    points: list[Point] = []
    for mixer in comparison.mixers:
        rows = [(number(row, "to"), number(row, "nats")) for row in comparison.of("position", mixer)]
        known = sorted((to, nats) for to, nats in rows if to is not None and nats is not None)
        points += [Point(comparison.style(mixer).name, to, nats) for to, nats in known]
    if not points:
        return None
    found = reaches(comparison)
    styles = [comparison.style(mixer) for mixer in comparison.mixers]
    styles = [style for style in styles if any(point.name == style.name for point in points)]
    y = Axis("loss (nats/token)", domain=_range(points))
    tips = [("x", "up to token", ",d"), ("y", "nats/token", ".4f")]
    trained = found[0].sequence if found else None
    rule = (trained, f"trained on {trained:.0f}") if trained else None
    x = Axis("position in the context (tokens)", "contexts")
    drawing = Drawing(styles, points, x, y, tips, rule=rule)
    caption = (
        "Mean loss of the tokens at each position of windows longer than those of training, first seed; the "
        f"same windows for all. {sentence(comparison)}"
    )
    return Figure(
        "position",
        "Loss against position in the context",
        caption.strip(),
        (("", lines(drawing)),),
        tuple(Legend(style) for style in styles),
    )


def _range(points: list[Point]) -> tuple[float, float]:
    """From the lowest loss to the highest behind the start, but not to what a model that cannot go beyond its
    training length makes of it: twice the range of the others is enough to see it leave.
    """
    late = [point for point in points if point.x >= _SETTLED] or points
    low = min(point.y for point in late)
    best: dict[str, float] = {}
    for point in late:
        best[point.name] = max(best.get(point.name, point.y), point.y)
    ordered = sorted(best.values())
    usual = ordered[len(ordered) // 2] - low
    high = min(ordered[-1], low + 3 * max(usual, 0.05))
    pad = 0.06 * max(high - low, 1e-3)
    return low - pad, high + pad
