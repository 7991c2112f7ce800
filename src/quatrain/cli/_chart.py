"""The chart of a forecast: the past, the mean, and the quantiles as bands; SVG, or HTML with hover."""

from collections.abc import Sequence
from typing import Any

from quatrain.errors import MissingExtraError

_COLOUR = "#0072B2"  # of Okabe and Ito's palette, which the colour-blind can tell apart
_WIDTH, _HEIGHT = 640, 220
_HISTORY = 4  # horizons of the past that are shown, at most


def drawing(
    columns: Sequence[str],
    history: Sequence[Sequence[float]],
    mean: Sequence[Sequence[float]],
    quantiles: Sequence[Sequence[Sequence[float]]],
    levels: Sequence[float],
    kind: str,
) -> str:
    """A panel for each of M columns, as text of a file of ``kind`` (".svg" or ".html").

    ``history (T, M)`` ends where ``mean (H, M)`` and ``quantiles (H, M, Q)`` begin; step 0 is the last value
    known. The HTML holds its scripts, no request goes out. Raises MissingExtraError without the extra.
    """
    try:
        import altair
        import vl_convert
    except ImportError:
        raise MissingExtraError("--chart needs the extra report: pip install 'quatrain[report]'") from None
    panels = [
        _panel(altair, name, index, history, mean, quantiles, levels) for index, name in enumerate(columns)
    ]
    chart = altair.vconcat(*panels).configure_view(stroke=None).configure(background="white")
    spec: dict[str, Any] = chart.to_dict()
    version = "v" + ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    if kind.lower() == ".svg":
        return str(vl_convert.vegalite_to_svg(spec, vl_version=version))
    return str(vl_convert.vegalite_to_html(spec, vl_version=version, bundle=True))


def _panel(
    alt: Any,
    name: str,
    column: int,
    history: Sequence[Sequence[float]],
    mean: Sequence[Sequence[float]],
    quantiles: Sequence[Sequence[Sequence[float]]],
    levels: Sequence[float],
) -> Any:
    shown = list(history)[-_HISTORY * len(mean) :]
    past = [{"step": at - len(shown) + 1, "value": row[column]} for at, row in enumerate(shown)]
    last = past[-1]["value"]
    ahead = [{"step": 0, "value": last}]
    ahead += [{"step": step, "value": row[column]} for step, row in enumerate(mean, 1)]
    x = alt.X("step:Q", title="steps from the last value known")
    y = alt.Y("value:Q", title=name, scale=alt.Scale(zero=False))
    tip = [alt.Tooltip("step:Q"), alt.Tooltip("value:Q", title=name, format=".5~g")]
    layers = []
    for low in range(len(levels) // 2):
        high = len(levels) - 1 - low
        band = [{"step": 0, "low": last, "high": last}]
        for step, row in enumerate(quantiles, 1):
            band.append({"step": step, "low": row[column][low], "high": row[column][high]})
        share = levels[high] - levels[low]
        tips = [
            alt.Tooltip("step:Q"),
            alt.Tooltip("low:Q", title=f"{levels[low]:g} quantile", format=".5~g"),
            alt.Tooltip("high:Q", title=f"{levels[high]:g} quantile", format=".5~g"),
        ]
        area = alt.Chart(alt.InlineData(values=band)).mark_area(opacity=0.22, color=_COLOUR)
        layers.append(area.encode(x=x, y=alt.Y("low:Q", title=name), y2="high:Q", tooltip=tips))
        layers[-1].description = f"{share:.0%} of what may follow"
    line = alt.Chart(alt.InlineData(values=past)).mark_line(color="#444444", strokeWidth=1.5)
    layers.append(line.encode(x=x, y=y, tooltip=tip))
    line = alt.Chart(alt.InlineData(values=ahead)).mark_line(color=_COLOUR, strokeWidth=2)
    layers.append(line.encode(x=x, y=y, tooltip=tip))
    bands = ", ".join(f"{levels[len(levels) - 1 - low] - levels[low]:.0%}" for low in range(len(levels) // 2))
    title = f"{name}: the past, the mean of the forecast, and bands of {bands}"
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT, title=title)


__all__ = ["drawing"]
