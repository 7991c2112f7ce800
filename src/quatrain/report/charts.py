"""The charts of the page as Vega-Lite specs, built with Altair.

Text, axes and grid take ``currentColor``, so one drawing serves light, dark and print. Values are thinned
and rounded here: the page must stay below 2 MB however long the curves are.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from quatrain.errors import MissingExtraError
from quatrain.report import numbers
from quatrain.report.styles import BASELINE, Style

try:
    import altair as alt
except ImportError as error:
    raise MissingExtraError("the report's charts need altair: pip install 'quatrain[report]'") from error

Spec = dict[str, Any]

FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
POINTS = 1600  # values in one chart, over all its lines
_CONTEXT_LABEL = (
    "datum.value >= 1048576 ? datum.value / 1048576 + 'M' : datum.value >= 1024 ? datum.value / 1024 + 'K' : "
    "datum.value"
)
_BYTES_LABEL = (
    "datum.value >= 1073741824 ? datum.value / 1073741824 + ' GiB' : datum.value >= 1048576 ? datum.value "
    "/ 1048576"
    " + ' MiB' : datum.value >= 1024 ? datum.value / 1024 + ' KiB' : datum.value + ' B'"
)


class Axis(NamedTuple):
    """One axis: ``kind`` is linear or, logarithmic, log, scientific, rates, contexts or bytes."""

    title: str
    kind: str = "linear"
    domain: tuple[float, float] | None = None
    zero: bool = False


class Point(NamedTuple):
    """One measured point: ``run`` tells a model's lines apart, ``text`` is y in words for the tooltip."""

    name: str
    x: float
    y: float
    run: str = ""
    text: str = ""

    def value(self) -> dict[str, object]:
        """As chart data: m, x, y, and r and s where they are set."""
        row: dict[str, object] = {"m": self.name, "x": rounded(self.x), "y": rounded(self.y)}
        return row | ({"r": self.run} if self.run else {}) | ({"s": self.text} if self.text else {})


def _data(values: list[dict[str, object]]) -> Any:
    return alt.InlineData(values=values)


def _points(points: list[Point]) -> Any:
    return _data([point.value() for point in points])


def rounded(value: float) -> float:
    """Five significant digits: finer than a pixel."""
    return float(f"{value:.5g}")


def thin(points: list[Any], most: int) -> list[Any]:
    """At most ``most`` of the points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def schema_version() -> str:
    """The Vega-Lite release that Altair writes for, ``6.4``."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def _powers(low: float, high: float, step: int) -> list[float]:
    first, last = math.floor(math.log2(max(low, 1))), math.ceil(math.log2(max(high, 1)))
    return [2.0**power for power in range(first - first % step, last + 1, step)]


def _decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5 over few decades, powers of ten or of a thousand over many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    stride = 1 if last - first <= 7 else 3
    return [rounded(step * 10.0**power) for power in range(first, last + 1, stride) for step in steps]


def _log_scale(
    axis: Axis, low: float, high: float, values: list[float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scale and axis of a logarithmic channel, with room for the marks at both ends."""
    room = (high / low) ** 0.03 if high > low else 2.0
    scale: dict[str, Any] = {
        "type": "log",
        "nice": False,
        "domain": [rounded(low / room), rounded(high * room)],
    }
    if axis.kind == "contexts":
        doublings = math.log2(high / low) if high > low else 0
        step = 4 if doublings > 12 else 2 if doublings > 8 else 1
        return scale, {"values": _powers(low, high, step), "labelExpr": _CONTEXT_LABEL}
    if axis.kind == "bytes":
        doublings = math.log2(high / low)
        step = 5 if doublings > 16 else 2 if doublings > 5 else 1
        return scale, {"values": _powers(low, high, step), "labelExpr": _BYTES_LABEL}
    if axis.kind == "rates":
        return scale, {"values": sorted(set(values)), "format": ".0e"}
    return scale, {"values": _decades(low, high), "format": ".0e" if axis.kind == "scientific" else "~g"}


def _channel(make: Any, name: str, axis: Axis, values: list[float]) -> Any:
    low, high = axis.domain or (min(values), max(values))
    scale: dict[str, Any] = {"zero": axis.zero, "nice": axis.domain is None}
    options: dict[str, Any] = {"tickCount": 5}
    if axis.kind != "linear":
        scale, options = _log_scale(axis, low, high, values)
    elif high >= 1000:
        options["labelExpr"] = "datum.value ? format(datum.value, '~s') : '0'"
    if axis.domain and axis.kind == "linear":
        scale["domain"] = [rounded(low), rounded(high)]
    shown = alt.Axis(title=axis.title, labelOverlap="greedy", **options)
    return make(f"{name}:Q", axis=shown, scale=alt.Scale(**scale))


_CONFIG: Spec = {
    "font": FONT,
    "background": "transparent",
    "aria": False,  # the page labels each chart as one image; a label on every point would triple its size
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "domainColor": "currentColor",
        "domainOpacity": 0.5,
        "tickColor": "currentColor",
        "tickOpacity": 0.5,
    },
}


def _finish(chart: Any, height: int) -> Spec:
    spec: Spec = chart.properties(width="container", height=height).to_dict()
    spec.pop("$schema", None)  # the page names the dialect itself, and holds no address
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec["config"] = _CONFIG
    return spec


def _looks(styles: Iterable[Style]) -> tuple[Any, Any, Any]:
    """Colour, dash and shape channels: the same for a model in every chart, whichever models are in it."""
    looks = list(dict.fromkeys(styles))
    names = [style.name for style in looks]

    def channel(make: Any, range_: Any) -> Any:
        return make("m:N", scale=alt.Scale(domain=names, range=range_), legend=None)

    return (
        channel(alt.Color, [style.colour for style in looks]),
        channel(alt.StrokeDash, [list(style.dash) for style in looks]),
        channel(alt.Shape, [style.shape for style in looks]),
    )


def _rules(x: Any, y: Any, rules: list[tuple[str, float]]) -> list[Any]:
    """Grey horizontal lines with a name at the right end: the trivial baselines."""
    if not rules:
        return []
    base = alt.Chart(_data([{"y": rounded(at), "t": name} for name, at in rules]))
    line = base.mark_rule(color=BASELINE.colour, strokeDash=list(BASELINE.dash), strokeWidth=1.2).encode(y=y)
    text = base.mark_text(align="right", dy=-6, dx=-2, fontSize=10.5, color="currentColor", opacity=0.75)
    return [line, text.encode(y=y, x=alt.value("width"), text="t:N")]


class Drawing(NamedTuple):
    """A line chart: one line per model and run, with a mark on each of ``marks``, or else of ``points``.

    ``tips`` are (field, title, format) told of the nearest mark, no format meaning text; ``faint`` are thin
    lines behind; ``rules`` are named grey horizontal lines, ``rule`` a vertical one.
    """

    styles: list[Style]
    points: list[Point]
    x: Axis
    y: Axis
    tips: list[tuple[str, str, str]]
    marks: list[Point] | None = None
    faint: list[Point] | None = None
    rules: list[tuple[str, float]] | None = None
    height: int = 260
    rule: tuple[float, str] | None = None


def _upright(x: Any, at: float, name: str) -> list[Any]:
    """A grey vertical line with its name at the top."""
    base = alt.Chart(_data([{"x": rounded(at), "t": name}]))
    line = base.mark_rule(color=BASELINE.colour, strokeDash=list(BASELINE.dash), strokeWidth=1.2).encode(x=x)
    text = base.mark_text(align="left", dx=4, dy=5, fontSize=10.5, color="currentColor", opacity=0.75)
    return [line, text.encode(x=x, y=alt.value(4), text="t:N")]


def _tooltip(tips: list[tuple[str, str, str]]) -> Any:
    """The tooltip as one expression.

    As plain fields it would lose its texts: the cells around each mark that catch the pointer wrap the mark's
    row in another ``datum``, and Vega-Lite 6.4 forgets that for nominal fields.
    """
    row = "(datum.datum || datum)"
    parts = [f"'Model': {row}.m"]
    for name, title, form in tips:
        value = f"{row}.{name}"
        parts.append(f"'{title}': " + (f"format({value}, '{form}')" if form else value))
    return alt.value(alt.ExprRef("{" + ", ".join(parts) + "}"))


def lines(drawing: Drawing) -> Spec:
    """The Vega-Lite spec of a line chart."""
    shown = [*drawing.points, *(drawing.faint or [])]
    x = _channel(alt.X, "x", drawing.x, [point.x for point in shown])
    y = _channel(alt.Y, "y", drawing.y, [point.y for point in shown])
    colour, dash, shape = _looks(drawing.styles)

    def chart(points: list[Point]) -> Any:
        return alt.Chart(_points(points)).encode(x=x, y=y, color=colour)

    near = alt.selection_point(name="near", nearest=True, on="pointerover", clear="pointerout", empty=False)
    line = chart(drawing.points).mark_line(strokeWidth=2, clip=True).encode(detail="r:N", strokeDash=dash)
    marks = chart(drawing.points if drawing.marks is None else drawing.marks)
    marks = marks.mark_point(filled=True, opacity=1, clip=True).encode(
        shape=shape,
        size=alt.condition(near, alt.value(150), alt.value(44)),
        tooltip=_tooltip(drawing.tips),
    )
    layers = _rules(x, y, drawing.rules or [])
    if drawing.rule:
        layers += _upright(x, *drawing.rule)
    if drawing.faint:
        behind = chart(drawing.faint).mark_line(strokeWidth=1, opacity=0.35, clip=True)
        layers.append(behind.encode(detail="r:N"))
    return _finish(alt.layer(*layers, line, marks.add_params(near)), drawing.height)


def bars(
    entries: list[tuple[Style, float, tuple[float, ...]]],
    title: str,
    show: Callable[[float], str] = numbers.loss,
    whole: float | None = None,
) -> Spec:
    """Horizontal bars from zero, in the order given; several seeds are shown as ticks on their bar, and its
    number behind them. Ticks of the axis end at ``whole``, where nothing can be more.
    """
    order = [style.name for style, _, _ in entries]
    values = [
        {"m": style.name, "y": rounded(mean), "t": show(mean), "e": rounded(max(mean, *each, mean))}
        for style, mean, each in entries
    ]
    seeds = [{"m": s.name, "y": rounded(one)} for s, _, each in entries if len(each) > 1 for one in each]
    y = alt.Y(
        "m:N",
        sort=order,
        axis=alt.Axis(title=None, ticks=False, domain=False, labelLimit=150, labelFontSize=12),
    )
    most = whole or max(mean for _, mean, _ in entries) or 1.0
    x = alt.X(
        "y:Q",
        axis=alt.Axis(title=title, values=[whole * at / 5 for at in range(6)])
        if whole
        else alt.Axis(title=title, tickCount=5),
        scale=alt.Scale(domain=[0, rounded(most * 1.3)], nice=False),
    )
    colour = alt.Color(
        "m:N", scale=alt.Scale(domain=order, range=[s.colour for s, _, _ in entries]), legend=None
    )
    tips = [alt.Tooltip("m:N", title="Model"), alt.Tooltip("y:Q", title=title, format=".4f")]
    base = alt.Chart(_data(values)).encode(y=y, x=x)
    layers = [
        base.mark_bar(height={"band": 0.62}, cornerRadiusEnd=2).encode(color=colour, tooltip=tips),
        base.mark_text(align="left", dx=5, fontSize=12, color="currentColor").encode(
            text="t:N", x=alt.X("e:Q", title=title)
        ),
    ]
    if seeds:
        ticks = alt.Chart(_data(seeds)).mark_tick(color="currentColor", thickness=1.5, height=10)
        layers.append(ticks.encode(y=y, x=x, tooltip=tips))
    return _finish(alt.layer(*layers), 26 * len(entries) + 10)
