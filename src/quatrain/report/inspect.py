"""Rows of an inspected model (`quatrain.lab.inspection.inspect`) -> one self-contained page. No torch.

Everything over time is aligned: step t of the input stands at the same place in every picture, and pointing
at one marks it in all of them and in the text. The page loads nothing, needs no chart library and stays
below 2 MB. Every text from the rows goes through ``escape``.
"""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from quatrain._files import write_atomic
from quatrain.errors import DataError
from quatrain.report import _inspect_words as words
from quatrain.report import numbers
from quatrain.report._inspect_input import answer, series, spoken, text
from quatrain.report._inspect_layer import colour_of, json_in_page, layer, steps_of, time_axis
from quatrain.report._pictures import LogAxis, axis
from quatrain.report.numbers import NBSP

Row = Mapping[str, Any]

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'"
)


def summary(rows: Sequence[Row]) -> list[str]:
    """The headline, what was left out, and a line for each layer, as plain text."""
    return [line.replace(NBSP, " ") for line in words.lines(_checked(rows))]


def write(rows: Sequence[Row], path: str | Path) -> Path:
    """Write the page to ``path``, whole or not at all, and return it. Raises DataError, OSError."""
    target = Path(path)
    write_atomic(target, html(rows))
    return target


def html(rows: Sequence[Row]) -> str:
    """The whole page as text. Raises DataError for rows that hold no inspection."""
    about, *others = _checked(rows)
    headline = words.headline(rows)
    layers = [row for row in others if row["kind"] == "layer"]
    labels = _labels(others)
    parts = [_summary(about, others, layers)]
    links = {"summary": "Summary", "input": "Input"}
    for row in others:
        if row["kind"] == "text":
            parts.append(_section("input", "The input", spoken(row, about), text(row, labels)))
        elif row["kind"] == "series":
            parts.append(_section("input", "The input", "", series(row) + time_axis(about["steps"], [])))
        elif row["kind"] == "answer":
            links["answer"] = "Answer"
            said = answer(row, others, colour_of(layers[-1]["mixer"]))
            below = "" if row.get("mean") else time_axis(about["steps"], labels)
            parts.append(_section("answer", "What the model answers", "", said + below))
    for row in layers:
        key = f"layer-{row['index'] + 1}"
        links[key] = f"Layer {row['index'] + 1}"
        parts.append(layer(row, about, labels, key))
    nav = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in links.items())
    here = files("quatrain.report")
    style = (here / "page.css").read_text("utf-8") + (here / "inspect.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(headline)}</title>\n<style>\n{style}</style></head>\n"
        f'<body class="inspect" data-steps="{about["steps"]}"><div class="page">'
        f'<header><p class="kicker">{_kicker(about)}</p><h1>{escape(headline)}</h1></header>'
        f'<nav aria-label="Parts of this page"><ul>{nav}</ul></nav>'
        f"<main>{''.join(parts)}</main>{_footer(about)}</div>\n"
        f'<script type="application/json" id="labels">{json_in_page(labels)}</script>\n'
        f"<script>\n{(here / 'inspect.js').read_text('utf-8')}</script></body></html>\n"
    )


def _checked(rows: Sequence[Row]) -> Sequence[Row]:
    if not rows or rows[0].get("kind") != "inspection" or rows[-1].get("kind") != "layer":
        raise DataError("rows: hold no inspection of a model")
    return rows


def _labels(rows: Sequence[Row]) -> list[str]:
    """What stands at each step of a text, blanks made visible; empty for numbers."""
    found: list[str] = []
    for row in rows:
        if row["kind"] == "text":
            for span in row["spans"]:
                shown = words.visible(span[0])
                found += (
                    [shown] if span[2] == 1 else [f"{shown} {part + 1}/{span[2]}" for part in range(span[2])]
                )
    return found


def _section(key: str, title: str, lead: str, body: str) -> str:
    intro = f"<p>{escape(lead)}</p>" if lead else ""
    return f'<section id="{key}"><h2>{escape(title)}</h2>{intro}{body}</section>'


def _kicker(about: Row) -> str:
    trained = about.get("trained") or {}
    parts = [
        "Quatrain inspection",
        Path(about["checkpoint"]).name,
        words.names_of(about),
        f"{len(about['kinds'])} layer{'s' if len(about['kinds']) > 1 else ''} of width {about['width']}",
        f"{numbers.count(about['params'])} parameters",
        f"trained on {numbers.count(trained['tokens'])} steps" if trained.get("tokens") else "",
    ]
    return " \N{MIDDLE DOT} ".join(escape(part) for part in parts if part)


def _summary(about: Row, others: Sequence[Row], layers: Sequence[Row]) -> str:
    facts = [(f"Layer {row['index'] + 1}, {words.name_of(row['mixer'])}", f"layer-{row['index'] + 1}",
              words.layer(row, about["form"])[0]) for row in layers]  # fmt: skip
    if len(facts) > 6:  # a deep model: the pictures of each layer say the rest
        facts = [*facts[:3], *facts[-3:]]
    for row in others:
        if row["kind"] == "text" and row.get("nats") is not None:
            facts.insert(0, ("Prediction", "input", _prediction(row, about)))
    listed = "".join(
        f'<div><dt><a href="#{key}">{escape(name)}</a></dt><dd>{escape(said)}</dd></div>'
        for name, key, said in facts
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in about["notes"])
    warned = f'<ul class="warnings">{notes}</ul>' if notes else ""
    return (
        f'<div class="summary" id="summary"><div><dl class="facts">{listed}</dl>{warned}</div>'
        f"{_memories(layers)}</div>"
    )


def _prediction(row: Row, about: Row) -> str:
    scored = [span for span in row["spans"] if span[3] is not None]
    worst = sorted(scored, key=lambda span: -span[3])[:3]
    told = f"{numbers.loss(row['nats'])} nats per {about['unit']}"
    if row["bytes"]:
        told += (
            f", {numbers.loss(row['nats'] * row['scored'] / row['bytes'] / 0.6931471805599453)} bits per byte"
        )
    best = sum(bool(span[4]) and span[4][0][0] == span[0] for span in scored)
    told += f"; the likeliest was right {percent_of(best, len(scored))} of the time."
    surprises = numbers.listed([f"{words.quoted(span[0])} at step {span[1] + 1}" for span in worst])
    return f"{told} It was surprised most by {surprises}." if worst else told


def percent_of(part: int, whole: int) -> str:
    """A share in per cent; of nothing, none."""
    return numbers.percent(part / whole if whole else 0.0)


def _memories(layers: Sequence[Row]) -> str:
    """The quartiles of every layer on one axis."""
    shown = [row for row in layers if row.get("memory")]
    finite = [value for row in shown for value in row["memory"]["quartiles"] if value is not None]
    if not finite:
        return ""
    scale = LogAxis(min(finite), max(finite))
    boxes = ""
    for row in shown:
        number, name = row["index"] + 1, escape(words.name_of(row["mixer"]))
        boxes += f'<li><a href="#layer-{number}">{number}{NBSP}{name}</a>{_box(row, scale)}</li>'
    caption = (
        "Steps until what was written has faded to 1/e, over all units of a layer, on a log scale: the bar "
        "holds the middle half, the tick is the median, the line goes from the shortest to the longest. Of "
        "attention, which forgets nothing: the mean distance that a head looks back."
    )
    return (
        f'<figure id="memory"><h3>How far each layer remembers</h3><ul class="boxes">{boxes}</ul>'
        f'<div class="scale">{axis(scale)}</div><figcaption>{caption}</figcaption></figure>'
    )


def _box(row: Row, scale: LogAxis) -> str:
    ends = [scale.at(value) if value is not None else 100.0 for value in row["memory"]["quartiles"]]
    low, first, middle, third, high = ends
    colour = colour_of(row["mixer"])
    told = numbers.listed([steps_of(value) for value in row["memory"]["quartiles"]])
    return (
        f'<span class="box-row" style="color:{colour}" title="shortest, quartiles, longest: {told} steps">'
        f'<i class="whisker" style="left:{low}%;width:{high - low:.2f}%"></i>'
        f'<i class="middle" style="left:{first}%;width:{max(0.6, third - first):.2f}%"></i>'
        f'<i class="median" style="left:{middle}%"></i></span>'
    )


def _footer(about: Row) -> str:
    pairs = [
        ("Checkpoint", about["checkpoint"]),
        ("Input", str(about["input"])),
        (
            "How",
            "Each layer computed again from its weights by its definition, in float32 or wider; one "
            "sequence, from the initial state, without dropout.",
        ),
    ]
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in pairs)
    return f"<footer><dl>{listed}</dl></footer>"
