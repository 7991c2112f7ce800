"""What every page of the report is made of: a shell that asks nobody for anything, figures, tables, lists.

Every text from records goes through ``escape`` and every spec through ``_json``; a content security policy
forbids requests even if one were forgotten.
"""

import json
import re
from datetime import datetime
from html import escape
from importlib.resources import files

from quatrain.errors import MissingExtraError
from quatrain.report import charts
from quatrain.report.figures import Figure
from quatrain.report.styles import OUTLINES, Style
from quatrain.report.table import Table

try:
    import vl_convert
except ImportError as error:
    raise MissingExtraError("report.html needs vl-convert-python: pip install 'quatrain[report]'") from error

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
_STILL = 520  # width of the still pictures, in pixels; the page scales them


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def swatch(style: Style) -> str:
    """A style as it looks in a legend."""
    dash = "" if style.dash == (1, 0) else f' stroke-dasharray="{" ".join(map(str, style.dash))}"'
    return (
        f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true"><path d="M0 6H34" '
        f'stroke="{style.colour}" '
        f'stroke-width="2"{dash}/><path transform="translate(11 0)" d="{OUTLINES[style.shape]}" '
        f'fill="{style.colour}"/></svg>'
    )


def _drawing(spec: charts.Spec, key: str) -> str:
    """The chart as a still picture, which the script replaces: what is seen where scripts are blocked."""
    still = {name: value for name, value in spec.items() if name != "autosize"} | {"width": _STILL}
    svg: str = vl_convert.vegalite_to_svg(still, vl_version=charts.schema_version())
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.4g}", svg)  # finer than a screen shows
    return re.sub(r'(id="|url\(#)(clip|gradient)', rf"\1{key}-\2", svg)


def _chart(figure: Figure, index: int) -> str:
    subtitle, spec = figure.panels[index]
    key, name = f"{figure.key}-{index}", f"{figure.title} {subtitle}".strip()
    spec = {**spec, "description": name}  # Vega reads it out as the chart's label
    head = f"<p>{escape(subtitle)}</p>" if subtitle else ""
    return (
        f'<div class="panel">{head}<div class="chart" id="{key}" role="img" '
        f'aria-label="{escape(name)}">'
        f'{_drawing(spec, key)}</div><script type="application/json" id="{key}-spec">{_json(spec)}</script>'
        f"</div>"
    )


def figure_html(figure: Figure, stamp: str) -> str:
    """A figure with its legend, drawn panels and caption; ``stamp`` is HTML."""
    legend = "".join(
        f"<li>{swatch(item.style)}{escape(item.style.name)}"
        + (f"<span>{escape(item.remark)}</span>" if item.remark else "")
        + "</li>"
        for item in figure.legend
    )
    panels = "".join(_chart(figure, index) for index in range(len(figure.panels)))
    missing = f" {escape(figure.missing)}" if figure.missing and figure.panels else ""
    absent = f'<p class="absent">{escape(figure.missing)}</p>' if not figure.panels else ""
    return (
        f'<figure id="{figure.key}"><h3>{escape(figure.title)}</h3>'
        + (f'<ul class="legend">{legend}</ul>' if legend else "")
        + (f'<div class="panels">{panels}</div>' if panels else absent)
        + f'<figcaption>{escape(figure.caption)}{missing}<span class="stamp">{stamp}</span></figcaption>'
        f"</figure>"
    )


def plain_table(table: Table, label: str) -> str:
    """A table of strings that can be sorted."""
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(text)}</button></th>' for text in table.header
    )
    lines = ""
    for name, *cells in table.rows:
        tds = (f"<td{' class=best' if text.endswith('*') else ''}>{escape(text)}</td>" for text in cells)
        lines += f'<tr><th scope="row">{escape(name)}</th>{"".join(tds)}</tr>'
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{escape(label)}"><table><thead><tr>'
        f"{heads}</tr>"
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


def pairs_html(pairs: list[tuple[str, str]], kind: str = "") -> str:
    """A definition list."""
    if kind:
        lines = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs)
        return f'<dl class="{kind}">{lines}</dl>'
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs) + "</dl>"
    )


def section(key: str, title: str, lead: str, body: str) -> str:
    """A part of the page; ``body`` is HTML."""
    intro = f"<p>{escape(lead)}</p>" if lead else ""
    return f'<section id="{key}"><h2>{escape(title)}</h2>{intro}{body}</section>'


def date(started: object) -> str:
    """A date in words; empty where it is none."""
    try:
        when = datetime.fromisoformat(str(started))
    except ValueError:
        return ""
    return f"{when.day} {when:%B %Y}"


def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, of the release that the charts were written for."""
    version = charts.schema_version()
    known = vl_convert.get_vegalite_versions()
    if version not in known:
        raise MissingExtraError(
            f"altair writes Vega-Lite {version}, vl-convert-python knows {', '.join(known)}: "
            "pip install --upgrade 'quatrain[report]'"
        )
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return script.replace("</script", "<\\/script")


def under(text: str, stamp: str) -> str:
    """A note below a table."""
    return f'<p class="under">{escape(text)}<span class="stamp">{stamp}</span></p>'


def document(title: str, kicker: str, links: dict[str, str], main: str, footer: list[tuple[str, str]]) -> str:
    """The whole page: ``title`` is text, ``kicker`` and ``main`` are HTML, ``links`` from section to name.

    Costs about two seconds, nearly all of it the chart library's bundling.
    """
    here = files("quatrain.report")
    nav = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in links.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title>\n<style>"
        f"\n{(here / 'page.css').read_text('utf-8')}</style></head>\n"
        f'<body><div class="page"><header><p class="kicker">{kicker}</p>'
        f'<h1>{escape(title)}</h1></header><nav aria-label="Parts of this page"><ul>{nav}</ul></nav>'
        f"<main>{main}</main><footer>{pairs_html(footer)}</footer></div>\n"
        f"<script>{bundle()}</script>\n<script>\n{(here / 'page.js').read_text('utf-8')}</script></body>"
        f"</html>\n"
    )
