"""The page: one HTML file that holds its style, its script and its data, and asks nobody for anything.

Every text from the records goes through ``escape`` and every spec through ``_json``; a content security
policy forbids requests even if one were forgotten.
"""

import json
import re
from datetime import datetime
from html import escape
from importlib.resources import files

from quatrain.errors import MissingExtraError
from quatrain.report import charts, numbers, samples
from quatrain.report.advice import advise
from quatrain.report.evidence import differences
from quatrain.report.far import position
from quatrain.report.figures import FIGURES, Figure, equal_time, final_losses, rates
from quatrain.report.gather import Comparison, Entry, number, table_of
from quatrain.report.measure import NATS
from quatrain.report.method import footer, method
from quatrain.report.rates import rate_table
from quatrain.report.styles import OUTLINES, Style
from quatrain.report.summary import Summary, beaten_by, summarise
from quatrain.report.table import (
    Column,
    Table,
    cell,
    columns,
    provenance,
    ranked,
    timed_columns,
    timed_ranked,
    titles,
)

try:
    import vl_convert
except ImportError as error:
    raise MissingExtraError("report.html needs vl-convert-python: pip install 'quatrain[report]'") from error

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
_STILL = 520  # width of the still pictures, in pixels; the page scales them


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _swatch(style: Style) -> str:
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


def _figure(figure: Figure, stamp: str) -> str:
    legend = "".join(
        f"<li>{_swatch(item.style)}{escape(item.style.name)}"
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


# Where the numbers behind a fact of the summary stand.
_BEHIND = {
    "How sure": "differences",
    "With equal time": "time",
    "Baselines": "table",
    "Fastest to train": "loss-time",
    "Memory": "state",
}


def _summary(summary: Summary, figure: Figure, stamp: str) -> str:
    facts = "".join(
        f'<div><dt><a href="#{_BEHIND.get(name, "latency")}">{escape(name)}</a></dt>'
        f"<dd>{escape(text)}</dd></div>"
        for name, text in summary.facts
    )
    warnings = "".join(f"<li>{escape(text)}</li>" for text in summary.warnings)
    return (
        f'<div class="summary" id="summary"><div><dl class="facts">{facts}</dl>'
        + (f'<ul class="warnings">{warnings}</ul>' if warnings else "")
        + f"</div>{_figure(figure, stamp)}</div>"
    )


def _head(title: str, unit: str, note: str) -> str:
    return (
        f'<th scope="col" title="{escape(note)}"><button type="button">{escape(title)}</button>'
        f"<small>{escape(unit)}</small></th>"
    )


def _line(entry: Entry, shown: list[Column], best: dict[str, float]) -> str:
    status = (
        "" if entry.status in ("ok", "baseline") else f' <span class="status">({escape(entry.status)})</span>'
    )
    cells = []
    for column in shown:
        value = entry.mean(column.key)
        mark = ' class="best"' if value is not None and value == best.get(column.key) else ""
        data = f' data-v="{value!r}"' if value is not None else ""
        cells.append(f"<td{mark}{data}>{escape(cell(entry, column))}</td>")
    kind = ' class="baseline"' if entry.status == "baseline" else ""
    return (
        f'<tr{kind}><th scope="row">{_swatch(entry.style)}{escape(entry.style.name)}{status}</th>'
        + "".join(cells)
        + "</tr>"
    )


def _best(lines: list[Entry], shown: list[Column]) -> dict[str, float]:
    """The best value of each column among the models that finished, where at least two have one."""
    found = {}
    for column in shown:
        values = [entry.mean(column.key) for entry in lines if entry.status == "ok"]
        known = [value for value in values if value is not None]
        if column.best and len(known) > 1 and min(known) < max(known):
            found[column.key] = min(known) if column.best == "low" else max(known)
    return found


def _table(lines: list[Entry], shown: list[Column], label: str) -> str:
    best = _best(lines, shown)
    heads = _head("Model", "", "architecture or trivial baseline")
    heads += "".join(_head(column.title, column.unit, column.help) for column in shown)
    body = "".join(_line(entry, shown, best) for entry in lines)
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{escape(label)}"><table><thead><tr>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _under(text: str, stamp: str) -> str:
    return f'<p class="under">{escape(text)}<span class="stamp">{stamp}</span></p>'


def _timed_table(comparison: Comparison, stamp: str) -> str:
    """The second table; empty where no model was trained anew for equal time."""
    lines = timed_ranked(comparison)
    if not lines:
        return ""
    note = (
        "Each model was trained anew from its first weights, on as many tokens as it reads in the same time "
        "by the median step of its run above, with a schedule that ends there."
    )
    table = _table(lines, timed_columns(comparison), "Table at equal training time") + _under(note, stamp)
    lead = "What the same waiting buys: a faster model reads more."
    return _section("time", titles(comparison)[1], lead, table)


def _differences(comparison: Comparison, stamp: str) -> str:
    """How far each model is behind the best, and whether noise explains it; empty for fewer than two."""
    parts = [(titles(comparison)[0], comparison.entries), ("Equal training time", comparison.timed)]
    tables = [(name, differences(comparison, entries)) for name, entries in parts]
    halves = [
        f"<div><h3>{escape(name)}</h3>{_plain_table(table, f'Differences, {name}')}</div>"
        for name, table in tables
        if table.rows
    ]
    if not halves:
        return ""
    body = f'<div class="halves">{"".join(halves)}</div>{_under(_tests(comparison), stamp)}'
    return _section("differences", "Beyond noise or not", "Every model against the best one.", body)


def _tests(comparison: Comparison) -> str:
    """How models were told apart: each kind of measure has a test of its own for one seed."""
    half = f"{numbers.PLUS_MINUS} half of the 95 % interval"
    seeds = "over seeds that read the same data"
    if comparison.task == "lm":
        return (
            f"Nats per token {half}, in pairs: over stretches of the test text (which covers the choice of "
            f"the text, not the randomness of training), and {seeds}. Level: within noise by the seeds, or "
            "for one seed by the text or below 1 %."
        )
    if comparison.entries[0].measure.percent:
        return (
            f"{half[0].upper()}{half[1:]}: over the test part, as if its sequences were drawn anew (two "
            f"shares after Agresti and Caffo; not the randomness of training), and {seeds}. Level: within "
            "noise by the seeds, or for one seed by the test part."
        )
    return f"{half[0].upper()}{half[1:]}, in pairs, {seeds}. Level: by the seeds, or for one seed below 1 %."


def _main_table(comparison: Comparison, stamp: str) -> str:
    losing = [(entry, beaten_by(comparison, entry)) for entry in comparison.entries]
    beaten: dict[str, list[str]] = {}  # baselines -> the models that don't beat them
    for entry, bases in losing:
        if bases:
            listed = numbers.listed([base.style.name for base in bases])
            beaten.setdefault(listed, []).append(entry.style.name)
    notes = [
        f"{numbers.listed(models)} {'does' if len(models) == 1 else 'do'} not beat {bases}."
        for bases, models in beaten.items()
    ]
    notes.append("Bold: best of its column among the models. Click a heading to sort.")
    table = _table(ranked(comparison), columns(comparison), "Main table")
    return table + _under(" ".join(notes), stamp)


def _plain_table(table: Table, label: str) -> str:
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


def _judged(comparison: Comparison) -> str:
    measure = comparison.measure
    if measure == NATS:
        return "Validation loss in nats per token"
    return f"{measure.says[:1].upper()}{measure.says[1:]} on the validation part"


def _grid(comparison: Comparison, stamp: str) -> str:
    table = rate_table(comparison)
    if not table.rows:
        return '<p class="absent">No validation loss was recorded.</p>'
    note = (
        f"{_judged(comparison)}, every rate stopped at the same step. * marks the rate that was "
        "chosen and "
        f"trained to the end, {numbers.DASH} one that did not get that far."
    )
    under = f'<p class="under">{escape(note)}<span class="stamp">{stamp}</span></p>'
    figure = _figure(rates(comparison), stamp)
    return f'<div class="halves"><div>{_plain_table(table, "Learning rates")}{under}</div>{figure}</div>'


def _choice(comparison: Comparison) -> str:
    """The closing paragraph; empty where nothing has a result."""
    sentences = advise(comparison)
    text = f'<p class="choice">{escape(" ".join(sentences))}</p>'
    return _section("choice", "Which to choose", "", text) if sentences else ""


def _pairs(pairs: list[tuple[str, str]], kind: str = "") -> str:
    if kind:
        lines = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs)
        return f'<dl class="{kind}">{lines}</dl>'
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs) + "</dl>"
    )


def _section(key: str, title: str, lead: str, body: str) -> str:
    intro = f"<p>{escape(lead)}</p>" if lead else ""
    return f'<section id="{key}"><h2>{escape(title)}</h2>{intro}{body}</section>'


def _kicker(comparison: Comparison) -> str:
    data, about = table_of(comparison.about, "data"), comparison.about
    budget, target = number(about, "budget_seconds"), number(about, "params_target")
    parts = [
        "Quatrain comparison",
        str(data.get("name") or ""),
        f"{numbers.count(target)} parameters each" if target else "",
        f"{numbers.duration(budget)} of training in all" if budget else "",
        _date(about.get("started")),
    ]
    return " \N{MIDDLE DOT} ".join(escape(part) for part in parts if part)


def _date(started: object) -> str:
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


def html(comparison: Comparison) -> str:
    """The whole page as text; costs about two seconds, nearly all of it the chart library's bundling."""
    here = files("quatrain.report")
    summary = summarise(comparison)
    stamp = escape(" \N{MIDDLE DOT} ".join(provenance(comparison)))
    extra = [figure for make in (equal_time, position) if (figure := make(comparison))]
    figures = [make(comparison) for make in FIGURES]
    drawn = "".join(_figure(figure, stamp) for figure in (*figures[:2], *extra, *figures[2:]))
    timed, apart, chosen = (
        _timed_table(comparison, stamp),
        _differences(comparison, stamp),
        _choice(comparison),
    )
    links = {"summary": "Summary", "table": "Equal tokens" if timed else "Table"}
    links |= {"time": "Equal time"} if timed else {}
    links |= {"differences": "Noise"} if apart else {}
    links |= {"charts": "Charts", "samples": "Samples", "rates": "Rates"}
    links |= {"choice": "Which to choose"} if chosen else {}
    links |= {"method": "Method"}
    nav = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in links.items())
    sections = [
        _section("table", titles(comparison)[0], "", _main_table(comparison, stamp)),
        timed,
        apart,
        _section("charts", "Charts", "Hover a point for its numbers.", f'<div class="figures">{drawn}</div>'),
        _section(
            "samples",
            *samples.TITLES[samples.forms(comparison)],
            samples.samples(comparison) + f'<p class="under"><span class="stamp">{stamp}</span></p>',
        ),
        _section("rates", "Learning rates tried", "", _grid(comparison, stamp)),
        chosen,
        _section("method", "Method", "", _pairs(method(comparison), "method")),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(summary.headline)}</title>\n<style>"
        f"\n{(here / 'page.css').read_text('utf-8')}</style></head>\n"
        f'<body><div class="page"><header><p class="kicker">{_kicker(comparison)}</p>'
        f'<h1>{escape(summary.headline)}</h1></header><nav aria-label="Parts of this page"><ul>{nav}</ul>'
        f"</nav>"
        f"<main>{_summary(summary, final_losses(comparison), stamp)}{''.join(sections)}</main>"
        f"<footer>{_pairs(footer(comparison))}</footer></div>\n"
        f"<script>{bundle()}</script>\n<script>\n{(here / 'page.js').read_text('utf-8')}</script></body>"
        f"</html>\n"
    )
