"""The page of a comparison: one HTML file that holds its style, its script and its data; see `_document`."""

from html import escape

from quatrain.report import numbers, samples
from quatrain.report._document import (
    date,
    document,
    figure_html,
    pairs_html,
    plain_table,
    section,
    swatch,
    under,
)
from quatrain.report.advice import advise
from quatrain.report.evidence import differences
from quatrain.report.far import position
from quatrain.report.figures import FIGURES, Figure, equal_time, final_losses, rates
from quatrain.report.gather import Comparison, Entry, number, table_of
from quatrain.report.measure import NATS
from quatrain.report.method import footer, method
from quatrain.report.rates import rate_table
from quatrain.report.summary import Summary, beaten_by, summarise
from quatrain.report.table import (
    Column,
    cell,
    columns,
    provenance,
    ranked,
    timed_columns,
    timed_ranked,
    titles,
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
        + f"</div>{figure_html(figure, stamp)}</div>"
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
        f'<tr{kind}><th scope="row">{swatch(entry.style)}{escape(entry.style.name)}{status}</th>'
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


def _timed_table(comparison: Comparison, stamp: str) -> str:
    """The second table; empty where no model was trained anew for equal time."""
    lines = timed_ranked(comparison)
    if not lines:
        return ""
    note = (
        "Each model was trained anew from its first weights, on as many tokens as it reads in the same time "
        "by the median step of its run above, with a schedule that ends there."
    )
    table = _table(lines, timed_columns(comparison), "Table at equal training time") + under(note, stamp)
    lead = "What the same waiting buys: a faster model reads more."
    return section("time", titles(comparison)[1], lead, table)


def _differences(comparison: Comparison, stamp: str) -> str:
    """How far each model is behind the best, and whether noise explains it; empty for fewer than two."""
    parts = [(titles(comparison)[0], comparison.entries), ("Equal training time", comparison.timed)]
    tables = [(name, differences(comparison, entries)) for name, entries in parts]
    halves = [
        f"<div><h3>{escape(name)}</h3>{plain_table(table, f'Differences, {name}')}</div>"
        for name, table in tables
        if table.rows
    ]
    if not halves:
        return ""
    body = f'<div class="halves">{"".join(halves)}</div>{under(_tests(comparison), stamp)}'
    return section("differences", "Beyond noise or not", "Every model against the best one.", body)


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
    return table + under(" ".join(notes), stamp)


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
    figure = figure_html(rates(comparison), stamp)
    return f'<div class="halves"><div>{plain_table(table, "Learning rates")}{under}</div>{figure}</div>'


def _choice(comparison: Comparison) -> str:
    """The closing paragraph; empty where nothing has a result."""
    sentences = advise(comparison)
    text = f'<p class="choice">{escape(" ".join(sentences))}</p>'
    return section("choice", "Which to choose", "", text) if sentences else ""


def _kicker(comparison: Comparison) -> str:
    data, about = table_of(comparison.about, "data"), comparison.about
    budget, target = number(about, "budget_seconds"), number(about, "params_target")
    parts = [
        "Quatrain comparison",
        str(data.get("name") or ""),
        f"{numbers.count(target)} parameters each" if target else "",
        f"{numbers.duration(budget)} of training in all" if budget else "",
        date(about.get("started")),
    ]
    return " \N{MIDDLE DOT} ".join(escape(part) for part in parts if part)


def html(comparison: Comparison) -> str:
    """The whole page as text; costs about two seconds, nearly all of it the chart library's bundling."""
    summary = summarise(comparison)
    stamp = escape(" \N{MIDDLE DOT} ".join(provenance(comparison)))
    extra = [figure for make in (equal_time, position) if (figure := make(comparison))]
    figures = [make(comparison) for make in FIGURES]
    drawn = "".join(figure_html(figure, stamp) for figure in (*figures[:2], *extra, *figures[2:]))
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
    sections = [
        section("table", titles(comparison)[0], "", _main_table(comparison, stamp)),
        timed,
        apart,
        section("charts", "Charts", "Hover a point for its numbers.", f'<div class="figures">{drawn}</div>'),
        section(
            "samples",
            *samples.TITLES[samples.forms(comparison)],
            samples.samples(comparison) + f'<p class="under"><span class="stamp">{stamp}</span></p>',
        ),
        section("rates", "Learning rates tried", "", _grid(comparison, stamp)),
        chosen,
        section("method", "Method", "", pairs_html(method(comparison), "method")),
    ]
    main = f"{_summary(summary, final_losses(comparison), stamp)}{''.join(sections)}"
    return document(summary.headline, _kicker(comparison), links, main, footer(comparison))
