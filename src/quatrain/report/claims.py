"""Records of ``quatrain claims`` -> a table for the terminal, one in Markdown, one page. No torch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from quatrain import records
from quatrain._files import write_atomic
from quatrain.errors import DataError
from quatrain.report.gather import table_of
from quatrain.report.method import origin
from quatrain.report.numbers import listed
from quatrain.report.styles import STYLES
from quatrain.report.table import Table

Row = Mapping[str, Any]
Found = Mapping[str, Sequence[Row]]  # kind -> rows

MARKS = {
    "agrees": "\N{CHECK MARK}",
    "disagrees": "\N{MULTIPLICATION X}",
    "within noise": "\N{ALMOST EQUAL TO}",
    "not measurable here": "\N{EN DASH}",
    "not yet measured": "\N{HORIZONTAL ELLIPSIS}",
}
GROUPS = {
    "rnn": ("RNN", "A hidden vector, renewed by every step."),
    "lstm": ("LSTM", "A cell beside the hidden vector, and three gates."),
    "transformer": ("Transformer", "Attention: every position reads every earlier one."),
    "mamba": ("Mamba", "A state space whose parameters depend on the input."),
    "speed": ("Speed", "Equal parameters, the same machine, measured in turns."),
    "quality": ("Quality", "Small scale: what holds here need not hold at a billion parameters."),
    "loses": ("Where each loses", "Every architecture has such places."),
}
_SHORT = {"transformer": "Transformer", "loses": "Losses"}


def gather(rows: Iterable[Row]) -> Found:
    """Rows by kind. Raises DataError where there is no verdict: the run is not finished."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row["kind"]), []).append(row)
    if not found.get("verdict"):
        raise DataError("records: hold no verdict; `quatrain claims` writes them at its end")
    return found


def table(rows: Iterable[Row]) -> Table:
    """Belief, verdict and finding of every claim, as strings."""
    found = gather(rows)
    lines = [(str(r["belief"]), str(r["verdict"]), str(r["finding"])) for r in found["verdict"]]
    return Table(("Belief", "Verdict", "Measured"), tuple(lines))


def headline(found: Found) -> str:
    """``Of 27 things that people say, 15 agree with what was measured here, 5 disagree, ...``"""
    counts = Counter(str(row["verdict"]) for row in found["verdict"])
    says = {
        "agrees": "agree with what was measured",
        "disagrees": "disagree",
        "within noise": "lie within noise",
        "not measurable here": "cannot be measured here",
        "not yet measured": "are not yet measured",
    }
    parts = [f"{counts[word]} {text}" for word, text in says.items() if counts[word]]
    return f"Of {len(found['verdict'])} things that people say, {listed(parts)}"


def markdown(found: Found) -> str:
    """``table.md``: machine and date, then a line for each claim."""
    lines = [f"{headline(found)}.", "", stamp(found), "", "| Belief | Verdict | Measured |", "|---|---|---|"]
    for row in found["verdict"]:
        cells = (str(row[key]).replace("|", "\\|") for key in ("belief", "verdict", "finding"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def about(found: Found) -> Row:
    """The row that says where and with what the numbers were made; empty where there is none."""
    return (found.get("claims") or [{}])[0]


def stamp(found: Found) -> str:
    """Machine, version, commit and date in a line."""
    row = about(found)
    machine, versions = table_of(row, "machine"), table_of(row, "versions")
    threads = machine.get("threads")
    device = str(machine.get("device") or "cpu")
    parts = [
        str(machine.get("cpu") or "") if device == "cpu" else device,
        f"{threads} thread{'s' * (threads != 1)}" if threads else "",
        f"quatrain {versions['quatrain']}" if versions.get("quatrain") else "",
        f"commit {str(row['commit'])[:7]}" if row.get("commit") else "",
        str(row.get("started") or "")[:10],
    ]
    return " \N{MIDDLE DOT} ".join(part for part in parts if part)


def write(out_dir: Path) -> Path:
    """Write ``table.md`` and ``claims.html`` beside the ``records.jsonl`` of ``out_dir``; returns the page.

    Each file is replaced whole or not at all. Raises DataError where the records are missing, damaged or
    unfinished, and MissingExtraError where altair or vl-convert-python is not installed; ``table.md``, which
    needs neither, is written first.
    """
    source = Path(out_dir) / "records.jsonl"
    if not source.is_file():
        raise DataError(f"{source}: no such file; quatrain claims writes its records there")
    found = gather(records.read(source))
    write_atomic(source.with_name("table.md"), markdown(found))
    page = source.with_name("claims.html")
    write_atomic(page, html(found))
    return page


def html(found: Found) -> str:
    """The whole page as text. Raises MissingExtraError without the extra ``report``."""
    from quatrain.report._document import date, document, section

    verdicts = {str(row["id"]): row for row in found["verdict"]}
    groups = [key for key in GROUPS if any(row["group"] == key for row in verdicts.values())]
    links = {"beliefs": "Beliefs"} | {key: _SHORT.get(key, GROUPS[key][0]) for key in groups}
    links |= {"method": "Method"}
    sections = [section("beliefs", "What people say", _LEAD, _key() + _beliefs(found, verdicts))]
    for key in groups:
        cards = "".join(_claim(found, row) for row in verdicts.values() if row["group"] == key)
        sections.append(section(key, *GROUPS[key], f'<div class="claims">{cards}</div>'))
    sections.append(section("method", "Method", "", _method(found)))
    row = about(found)
    parts = ["Quatrain claims", _place(row), date(row.get("started"))]
    kicker = " \N{MIDDLE DOT} ".join(escape(part) for part in parts if part)
    return document(headline(found), kicker, links, "".join(sections), origin(row))


_LEAD = "Each mark is a claim: follow it to its measurement, its picture and how it was judged."


def _place(row: Row) -> str:
    machine = table_of(row, "machine")
    device = str(machine.get("device") or "cpu")
    return str(machine.get("cpu") or "") if device == "cpu" else device


def badge(word: str) -> str:
    """A verdict as a mark and a word."""
    kind = word.replace(" ", "-")
    return (
        f'<span class="verdict {kind}"><b aria-hidden="true">{MARKS.get(word, "")}</b>{escape(word)}</span>'
    )


def _key() -> str:
    return f'<p class="key">{"".join(badge(word) for word in MARKS)}</p>'


def _beliefs(found: Found, verdicts: Mapping[str, Row]) -> str:
    rows = found.get("belief") or []
    aspects = list(dict.fromkeys(str(row["aspect"]) for row in rows))
    heads = "".join(f'<th scope="col">{escape(aspect)}</th>' for aspect in aspects)
    lines = ""
    for mixer in dict.fromkeys(str(row["mixer"]) for row in rows):
        style = STYLES[mixer]
        mine = {str(row["aspect"]): row for row in rows if row["mixer"] == mixer}
        cells = "".join(_cell(aspect, mine.get(aspect), verdicts) for aspect in aspects)
        edge = f"border-left-color:{style.colour}"
        lines += f'<tr><th scope="row" style="{edge}">{escape(style.name)}</th>{cells}</tr>'
    return (
        f'<table class="beliefs"><thead><tr><th scope="col">Architecture</th>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )


def _cell(aspect: str, row: Row | None, verdicts: Mapping[str, Row]) -> str:
    """What is said of an architecture in one aspect, and its claims."""
    if row is None:
        return "<td></td>"
    marks = "".join(_link(verdicts[key]) for key in row["claims"] if key in verdicts)
    text = escape(str(row["text"]))
    return f'<td data-aspect="{escape(aspect)}"><p>{text}</p><div class="marks">{marks}</div></td>'


def _link(row: Row) -> str:
    word = str(row["verdict"])
    kind = word.replace(" ", "-")
    title = escape(f"{row['belief']} {word[:1].upper()}{word[1:]}.")
    return (
        f'<a class="verdict {kind}" href="#{escape(str(row["id"]))}" title="{title}"><b aria-hidden="true">'
        f'{MARKS.get(word, "")}</b>{escape(str(row["title"]))}<span class="said">: {escape(word)}</span></a>'
    )


def _claim(found: Found, row: Row) -> str:
    from quatrain.report._claim_figures import SEEN_IN

    key = str(row["id"])
    picture = _picture(found, key)
    note = ""
    seen = SEEN_IN.get(key)
    if seen is not None and _picture(found, seen):  # what has not been measured has none
        other = next((r for r in found["verdict"] if r["id"] == seen), row)
        name = f"{other['title']} ({GROUPS[str(other['group'])][0]})"
        note = f'<p class="seen">Picture: <a href="#{seen}">{escape(name)}</a>.</p>'
    return (
        f'<article class="claim{"" if picture else " plain"}" id="{escape(key)}"><div class="words">'
        f"<h3>{escape(str(row['title']))}</h3>{badge(str(row['verdict']))}"
        f"<blockquote>{escape(str(row['belief']))}</blockquote><p>{escape(str(row['finding']))}</p>{note}"
        f"<details><summary>How it was measured</summary><p>{escape(str(row['method']))}</p></details></div>"
        f"{picture}</article>"
    )


def _picture(found: Found, key: str) -> str:
    from quatrain.report._claim_figures import FIGURES, HEAT
    from quatrain.report._document import figure_html

    if key in HEAT:
        return HEAT[key](found)
    if key not in FIGURES:
        return ""
    figure = FIGURES[key](found)
    if not figure.panels:
        return ""
    return figure_html(figure, "")


def _method(found: Found) -> str:
    from quatrain.report._document import pairs_html

    config = table_of(about(found), "config")
    pairs = [
        (
            "Models",
            f"Language models of bytes with {config.get('params', 0):,} parameters each within 2 %, "
            "embedding and head not counted; depth by each architecture's usual rule. Cost does not depend "
            "on weights, so they are untrained where cost is measured.",
        ),
        (
            "Timing",
            f"{config.get('repeats', 0)} rounds of all that is compared, in turns, first to last and then "
            "last to first; medians. Calls shorter than 10 ms are repeated within a round.",
        ),
        (
            "Intervals",
            "Exponents: least squares on logarithms of medians; 95 % by bootstrap over the rounds, which "
            "covers their scatter and not a curve that is no power law. Bytes repeat themselves: there the "
            "interval comes from the residuals (Student's t). Over weights or sequences: Student's t. "
            "Shares: Wilson.",
        ),
        (
            "Verdicts",
            "Agrees where the whole interval lies where the belief says, disagrees where it lies outside, "
            "else within noise. Linear: an exponent of 0.85 to 1.15; quadratic: 1.8 to 2.2; constant: -0.15 "
            "to 0.15. The rules were written before the numbers, but for the map of step sizes, whose "
            "statistic and model were chosen while looking, and for gates and gradients, long dependences, "
            "parity, recall and batches, whose rules were made stricter after the first numbers.",
        ),
        (
            "What training takes",
            "Rows that need more training than a quarter of an hour come from records that ship with the "
            "package, named with their machine and date. Without a record a row says so.",
        ),
        (
            "Many numbers",
            f"{len(found['verdict'])} claims are judged, so one or two would look like disagreement by "
            "chance alone; an interval far from its limit says more than the word.",
        ),
    ]
    return pairs_html(pairs, "method")
