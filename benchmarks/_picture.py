"""Charts of the report side by side as one picture for the documents: on white, under one legend."""

import re
from collections.abc import Iterable
from html import escape

import vl_convert

from quatrain.report import charts
from quatrain.report.charts import Spec
from quatrain.report.styles import OUTLINES, Style


def side_by_side(panels: Iterable[tuple[str, Spec]], styles: Iterable[Style], width: int = 230) -> str:
    """An SVG of (title, spec) panels, each ``width`` wide."""
    parts, left = [], 12
    for key, (title, spec) in enumerate(panels):
        still = {name: value for name, value in spec.items() if name != "autosize"}
        svg: str = vl_convert.vegalite_to_svg(
            {**still, "width": width, "height": 220, "title": title}, vl_version=charts.schema_version()
        )
        svg = re.sub(r'(id="|url\(#)(clip|gradient)', rf"\g<1>{key}-\g<2>", svg)
        whole = float(re.search(r'width="([\d.]+)"', svg)[1])  # type: ignore[index]
        parts.append(svg.replace("<svg", f'<svg x="{left}" y="40"', 1))
        left += round(whole) + 18
    at = 16
    for style in styles:
        mark = f'<path transform="translate({at} 14)" d="{OUTLINES[style.shape]}" fill="{style.colour}"/>'
        parts.append(f'{mark}<text x="{at + 18}" y="25">{escape(style.name)}</text>')
        at += 50 + 8 * len(style.name)
    size = f'width="{left}" height="340" viewBox="0 0 {left} 340"'
    font = 'font-family="system-ui, sans-serif" font-size="13" color="#24292f" fill="#24292f"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return "".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>', paper, *parts, "</svg>\n"])
