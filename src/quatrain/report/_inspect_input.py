"""The input of an inspected model and its answer, as HTML."""

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from quatrain.report import numbers
from quatrain.report._inspect_words import quoted, visible
from quatrain.report._pictures import columns, heat, lines
from quatrain.report.samples import forecast_card
from quatrain.report.styles import BASELINE

Row = Mapping[str, Any]

_MOST = 6.0  # nats: what is worse is drawn as this
_CHANNELS = 6  # drawn as lines; more are a heat map


def spoken(row: Row, about: Row) -> str:
    """The line above the text."""
    if row.get("nats") is None:
        return "The text as the model reads it."
    unit = about["unit"]
    return (
        f"The text as the model reads it: the darker, the less it expected the {unit}. Point at one for its "
        "probability and for what was expected instead; pointing at any picture below marks the step here."
    )


def text(row: Row, labels: Sequence[str]) -> str:
    """The text, each token over the shade of its loss, and the losses as bars."""
    spans = "".join(_span(span) for span in row["spans"])
    scored = row.get("nats") is not None
    ramp = bars = after = ""
    if scored:
        ramp = (
            '<p class="under ramp-line"><span class="ramp">expected, 0<u></u>'
            f"{_MOST:.0f} nats or more, surprising</span></p>"
        )
        losses: list[float | None] = []
        for _, _, count, nats, _ in row["spans"]:
            losses += [None if nats is None else nats / count] * count
        bars = (
            '<figure class="course"><figcaption><b>Nats of each step</b></figcaption>'
            f'<div class="plot losses"><em>{_MOST:.0f}</em>{columns(losses, _MOST, "loss of each step")}'
            '<i class="cursor"></i></div></figure>'
        )
        told = numbers.listed([f"{quoted(token)} ({numbers.percent(p)})" for token, p in row["next"]])
        after = f'<p class="under">After the last one the model expects {escape(told)}.</p>' if told else ""
    return f'<pre class="text">{spans}</pre>{ramp}{after}{bars}'


def _span(span: Sequence[Any]) -> str:
    token, first, count, nats, guesses = span
    shown = visible(token) if not token.isprintable() else token
    shown = escape(shown) + ("\n" if token.endswith("\n") else "")
    told = f' data-n="{count}"' if count > 1 else ""
    if guesses:
        told += (
            f' data-g="{escape("|".join(f"{visible(name)} {numbers.percent(p)}" for name, p in guesses))}"'
        )
    if nats is None:
        return f'<span data-t="{first}"{told}>{shown}</span>'
    shade = min(nats / _MOST, 1.0)
    return f'<span data-t="{first}"{told} data-l="{nats:.3g}" style="--l:{shade:.2f}">{shown}</span>'


def series(row: Row) -> str:
    """Numbers over time: a line for each channel, or a heat map of many."""
    names, values = row["names"], row["values"]
    if len(values) > _CHANNELS:
        return _many(values)
    drawn = ""
    for index, (name, course) in enumerate(zip(names, values, strict=True)):
        low, high = min(course), max(course)
        target = index < (row.get("targets") or 0)
        paint, kind = (
            ("currentColor", "target") if target or not row.get("targets") else (BASELINE.colour, "read")
        )
        kind = f" <span>{kind}</span>" if row.get("targets") else ""
        drawn += (
            f'<figure class="course"><figcaption><b>{escape(name)}</b>{kind}</figcaption>'
            f'<div class="plot values" data-values="{escape(_list(course))}">'
            f"<em>{numbers.significant(high)}</em>"
            f'<em class="low">{numbers.significant(low)}</em>'
            f'{lines([(course, paint, "")], low, high, name)}<i class="cursor"></i></div></figure>'
        )
    return drawn


def _list(values: Sequence[float]) -> str:
    return '{"value":[' + ",".join(f"{value:.5g}" for value in values) + "]}"


def _many(values: Sequence[Sequence[float]]) -> str:
    """A row for each channel, the last on top: frequencies rise upwards."""
    rows, steps = len(values), len(values[0])
    low, high = min(map(min, values)), max(map(max, values))
    span = (high - low) or 1.0
    shades = bytes(round(255 * (value - low) / span) for course in reversed(values) for value in course)
    picture = heat(b64encode(shades).decode(), rows, steps, BASELINE.colour)
    ends = f"{numbers.significant(low)} to {numbers.significant(high)}"
    return (
        f'<figure class="strip"><figcaption><b>{rows} channels</b> <span>the last on top; {ends}</span>'
        f'</figcaption><div class="plot"><img alt="{rows} channels over time" src="{picture}" '
        f'style="height:{max(60, min(180, 2 * rows))}px"><i class="cursor"></i></div></figure>'
    )


def answer(row: Row, others: Sequence[Row], colour: str) -> str:
    """What the model says: classes, tags, a transcript, or a forecast."""
    if row.get("classes"):
        return _classes(row, colour)
    if row.get("mean"):
        return _future(row, others, colour)
    said = f'<p class="said">{escape(quoted(row["text"]))}</p>' if "text" in row else ""
    return said + _runs(row["steps"])


def _classes(row: Row, colour: str) -> str:
    bars = "".join(
        f'<li><span class="bar" style="width:{max(0.3, 100 * chance):.1f}%;background:{colour}"></span>'
        f"<b>{escape(name)}</b> {numbers.percent(chance)}</li>"
        for name, chance in row["classes"]
    )
    course = ""
    if row.get("course"):
        dashes = ("", "6 3", "2 3")
        drawn = [(each, colour, dash) for each, dash in zip(row["course"], dashes, strict=False)]
        styles = {"": "solid", "6 3": "dashed", "2 3": "dotted"}
        legend = "".join(
            f'<span><b style="border-top:2px {styles[dash]} {colour}"></b>{escape(name)}</span>'
            for (name, _), (_, _, dash) in zip(row["classes"], drawn, strict=False)
        )
        course = (
            f'<figure class="course"><figcaption><b>Probability, had the input ended here</b> {legend}'
            f'</figcaption><div class="plot norms"><em>1</em>{lines(drawn[::-1], 0.0, 1.0, "probabilities")}'
            f'<i class="cursor"></i></div></figure>'
        )
    return f'<ul class="classes">{bars}</ul>{course}'


def _runs(steps: Sequence[Sequence[Any]]) -> str:
    """The best symbol of every step: like neighbours are one block, fainter where it is less sure."""
    drawn, at = "", 0
    for name, run in groupby(steps, key=lambda step: step[0]):
        chances = [chance for _, chance in run]
        width, mean = len(chances) / len(steps) * 100, math.fsum(chances) / len(chances)
        left, last = at / len(steps) * 100, at + len(chances)
        told = f"steps {at + 1} to {last}: {name or 'blank'}, {numbers.percent(mean)}"
        if name:
            drawn += (
                f'<i title="{escape(told)}" style="left:{left:.2f}%;width:{width:.2f}%;'
                f'opacity:{0.35 + 0.65 * mean:.2f}">{escape(visible(name))}</i>'
            )
        at = last
    return (
        '<figure class="course"><figcaption><b>Best symbol of every step</b> '
        "<span>fainter where less sure</span></figcaption>"
        f'<div class="plot runs">{drawn}<i class="cursor"></i></div></figure>'
    )


def _future(row: Row, others: Sequence[Row], colour: str) -> str:
    (past,) = (other["values"] for other in others if other["kind"] == "series")
    cards = ""
    for index, name in enumerate(row["columns"][:_CHANNELS]):
        horizon = len(row["mean"][index])
        shown = {
            "column": name,
            "past": past[index][-max(48, 2 * horizon) :],
            "truth": [],
            "mean": row["mean"][index],
            "quantiles": row["quantiles"][index],
        }
        card = forecast_card(shown, colour)
        cards += f'<article class="sample" style="border-top-color:{colour}">{card}</article>'
    left = len(row["columns"]) - _CHANNELS
    more = f'<p class="under">{left} more columns are forecast and not drawn.</p>' if left > 0 else ""
    return f'<div class="samples">{cards}</div>{more}'
