"""The charts of the page as Vega-Lite specs, built with Altair.

Text, axes and grid take ``currentColor``, so one drawing serves light, dark and print. Values are thinned and rounded
here: the page must stay below 2 MB however long the curves are.
"""

import math
from collections.abc import Iterable
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
POINTS = 3000  # values in one chart, over all its lines
_CONTEXT_LABEL = "datum.value >= 1024 ? datum.value / 1024 + 'K' : datum.value"
_BYTES_LABEL = (
    "datum.value >= 1073741824 ? datum.value / 1073741824 + ' GiB' : datum.value >= 1048576 ? datum.value / 1048576"
    " + ' MiB' : datum.value >= 1024 ? datum.value / 1024 + ' KiB' : datum.value + ' B'"
)


class Axis(NamedTuple):
    """One axis: ``kind`` is linear, log, contexts (powers of two), bytes (powers of two) or scientific (log, 1e-3)."""

    title: str
    kind: str = "linear"
    domain: tuple[float, float] | None = None
    zero: bool = False


class Point(NamedTuple):
    """One measured point of a model: ``run`` tells its lines apart (seeds), ``text`` is y in words for the tooltip."""

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


def _powers(low: float, high: float, step: int) -> list[int]:
    first, last = math.floor(math.log2(max(low, 1))), math.ceil(math.log2(max(high, 1)))
    return [2**power for power in range(first - first % step if step > 1 else first, last + 1, step)]


def _channel(make: Any, name: str, axis: Axis, values: list[float]) -> Any:
    low, high = axis.domain or (min(values), max(values))
    options: dict[str, Any] = {"title": axis.title, "labelOverlap": "greedy"}
    scale: dict[str, Any] = {"zero": axis.zero, "nice": axis.domain is None}
    if axis.domain:
        scale["domain"] = [rounded(low), rounded(high)]
    if axis.kind == "contexts":
        scale |= {"type": "log", "base": 2, "nice": False}
        options |= {"values": _powers(low, high, 1), "labelExpr": _CONTEXT_LABEL}
    elif axis.kind == "bytes":
        spread = math.log2(max(high, 2) / max(low, 1))
        ticks = _powers(low, high, 5 if spread > 14 else 2 if spread > 5 else 1)
        scale |= {
            "type": "log",
            "base": 2,
            "domain": [min(ticks[0], low), max(ticks[-1], high)],
            "nice": False,
        }
        options |= {"values": ticks, "labelExpr": _BYTES_LABEL}
    elif axis.kind in ("log", "scientific"):
        scale |= {"type": "log"}
        options |= {"tickCount": 6, "format": ".0e" if axis.kind == "scientific" else "~g"}
    else:
        options |= {"tickCount": 5, "format": "~s" if high >= 1000 else "~g"}
    return make(f"{name}:Q", axis=alt.Axis(**options), scale=alt.Scale(**scale))


def _config() -> Spec:
    text = {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 11,
        "titleFontSize": 11,
    }
    axis = {
        **text,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "domainColor": "currentColor",
        "domainOpacity": 0.5,
        "tickColor": "currentColor",
        "tickOpacity": 0.5,
    }
    return {"font": FONT, "background": "transparent", "view": {"stroke": None}, "axis": axis}


def _finish(chart: Any, height: int) -> Spec:
    spec: Spec = chart.properties(width="container", height=height).to_dict()
    spec.pop("$schema", None)  # the page names the dialect itself, and holds no address
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec["config"] = _config()
    return spec


def _looks(styles: Iterable[Style]) -> dict[str, Any]:
    looks = list(dict.fromkeys(styles))
    names = [style.name for style in looks]
    return {
        "color": alt.Color(
            "m:N", scale=alt.Scale(domain=names, range=[s.colour for s in looks]), legend=None
        ),
        "strokeDash": alt.StrokeDash(
            "m:N", scale=alt.Scale(domain=names, range=[list(s.dash) for s in looks]), legend=None
        ),
        "shape": alt.Shape("m:N", scale=alt.Scale(domain=names, range=[s.shape for s in looks]), legend=None),
    }


def _rules(x: Any, y: Any, rules: list[tuple[str, float]]) -> list[Any]:
    """Grey horizontal lines with a name at the right end: the trivial baselines."""
    if not rules:
        return []
    base = alt.Chart(_data([{"y": rounded(at), "t": name} for name, at in rules]))
    line = base.mark_rule(color=BASELINE.colour, strokeDash=list(BASELINE.dash), strokeWidth=1.2).encode(y=y)
    text = base.mark_text(align="right", dy=-6, dx=-2, fontSize=10.5, color="currentColor", opacity=0.75)
    return [line, text.encode(y=y, x=alt.value("width"), text="t:N")]


def lines(
    styles: list[Style],
    points: list[Point],
    axes: tuple[Axis, Axis],
    tooltips: list[tuple[str, str, str]],
    *,
    faint: list[Point] | None = None,
    rules: list[tuple[str, float]] | None = None,
    height: int = 260,
) -> Spec:
    """One line with point marks per model and run.

    Hovering marks the nearest point and tells ``tooltips`` (field of the data, title, format; no format means text).
    ``faint`` are points drawn as thin lines behind (no points), ``rules`` are named horizontal lines.
    """
    x_axis, y_axis = axes
    shown = [*points, *(faint or [])]
    x = _channel(alt.X, "x", x_axis, [point.x for point in shown])
    y = _channel(alt.Y, "y", y_axis, [point.y for point in shown])
    looks = _looks(styles)
    base = alt.Chart(_points(points)).encode(x=x, y=y, detail="r:N")
    near = alt.selection_point(name="near", nearest=True, on="pointerover", clear="pointerout", empty=False)
    tips = [
        alt.Tooltip(field=name, type="quantitative", title=title, format=form)
        if form
        else alt.Tooltip(field=name, type="nominal", title=title)
        for name, title, form in tooltips
    ]
    line = base.mark_line(strokeWidth=2, clip=True).encode(
        color=looks["color"], strokeDash=looks["strokeDash"]
    )
    marks = base.mark_point(filled=True, opacity=1, clip=True).encode(
        color=looks["color"],
        shape=looks["shape"],
        size=alt.condition(near, alt.value(150), alt.value(44)),
        tooltip=[alt.Tooltip("m:N", title="Model"), *tips],
    )
    layers = [*_rules(x, y, rules or [])]
    if faint:
        behind = alt.Chart(_points(faint)).encode(x=x, y=y, detail="r:N", color=looks["color"])
        layers.append(behind.mark_line(strokeWidth=1, opacity=0.35, clip=True))
    return _finish(alt.layer(*layers, line, marks.add_params(near)), height)


def bars(entries: list[tuple[Style, float, tuple[float, ...]]], title: str) -> Spec:
    """Horizontal bars from zero, in the order given; several seeds are shown as ticks on their bar."""
    order = [style.name for style, _, _ in entries]
    values = [{"m": style.name, "y": rounded(mean), "t": numbers.loss(mean)} for style, mean, _ in entries]
    seeds = [{"m": s.name, "y": rounded(one)} for s, _, each in entries if len(each) > 1 for one in each]
    y = alt.Y(
        "m:N",
        sort=order,
        axis=alt.Axis(title=None, ticks=False, domain=False, labelLimit=150, labelFontSize=12),
    )
    most = max(mean for _, mean, _ in entries)
    x = alt.X(
        "y:Q",
        axis=alt.Axis(title=title, tickCount=5),
        scale=alt.Scale(domain=[0, rounded(most * 1.12)], nice=False),
    )
    colour = alt.Color(
        "m:N", scale=alt.Scale(domain=order, range=[s.colour for s, _, _ in entries]), legend=None
    )
    tips = [alt.Tooltip("m:N", title="Model"), alt.Tooltip("y:Q", title=title, format=".4f")]
    base = alt.Chart(_data(values)).encode(y=y, x=x)
    layers = [
        base.mark_bar(height={"band": 0.62}, cornerRadiusEnd=2).encode(color=colour, tooltip=tips),
        base.mark_text(align="left", dx=5, fontSize=12, color="currentColor").encode(text="t:N"),
    ]
    if seeds:
        ticks = alt.Chart(_data(seeds)).mark_tick(color="currentColor", thickness=1.5, height=10)
        layers.append(ticks.encode(y=y, x=x, tooltip=tips))
    return _finish(alt.layer(*layers), 26 * len(entries) + 10)
