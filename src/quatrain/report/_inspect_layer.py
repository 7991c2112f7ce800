"""One layer of an inspected model, as HTML: what it does over time, how long it remembers, attention maps."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from quatrain.report import _inspect_words as words
from quatrain.report import numbers
from quatrain.report._pictures import LogAxis, axis, heat, lines, mark, ticks
from quatrain.report.numbers import NBSP, TIMES
from quatrain.report.styles import BASELINE, STYLES

Row = Mapping[str, Any]

_TOKENS = 100  # steps whose tokens are written under each picture; more get numbers

_STRIPS = {
    ("rnn", "state"): ("Hidden state, |h|", "near 1 a tanh is saturated and lets no change through"),
    ("lstm", "input"): ("Input gate", "1 writes the new value into the cell, 0 ignores it"),
    ("lstm", "forget"): ("Forget gate", "1 keeps what the cell holds, 0 clears it"),
    ("lstm", "output"): ("Output gate", "1 shows the cell to the outside, 0 hides it"),
    ("gru", "reset"): ("Reset gate", "0 leaves the past out of the new value"),
    ("gru", "update"): ("Update gate", "1 keeps what the unit holds, 0 rewrites it"),
    ("s6", "step"): (
        "Step size",
        "large: writes the input and lets the past fade; small: passes it over",
    ),
    ("s4d", "step"): ("Step size", "fixed by training: the same for every input"),
    ("s6", "output"): ("Output gate, |SiLU(z)|", "0 hides the channel at this step"),
    ("s4d", "output"): ("Output gate, |SiLU(z)|", "0 hides the channel at this step"),
}


def colour_of(mixer: str) -> str:
    """The colour of an architecture."""
    return (STYLES.get(mixer) or BASELINE).colour


def json_in_page(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def steps_of(value: float | None) -> str:
    """A number of steps to two digits; None is never."""
    return "never" if value is None else words.steps(value)


def layer(row: Row, about: Row, labels: Sequence[str], key: str) -> str:
    """The section of a layer."""
    colour, steps = colour_of(row["mixer"]), about["steps"]
    title = f"Layer {row['index'] + 1}: {words.name_of(row['mixer'])}"
    said = " ".join(words.layer(row, about["form"]))
    strips = "".join(_strip(strip, row["mixer"], colour) for strip in row["strips"])
    over_time = _norms(row, about["form"], colour) + strips + time_axis(steps, labels)
    maps = _maps(row, colour) if row["maps"] else ""
    return (
        f'<section id="{key}" class="layer" style="--own:{colour}"><h2>{escape(title)}</h2>'
        f'<p>{escape(said)}</p><div class="inside"><div class="over-time">{over_time}</div>'
        f"{_distribution(row)}</div>{maps}</section>"
    )


def _norms(row: Row, form: str, colour: str) -> str:
    """Hidden norm after the layer, and what the mixer and the MLP add."""
    courses: list[tuple[Sequence[float], str, str]] = [(row["before"], "currentColor", "2 3")]
    if row["mlp"]:
        courses.append((row["mlp"], BASELINE.colour, "6 3"))
    courses.append((row["hidden"], "currentColor", ""))
    if form != "stack":
        courses.append((row["added"], colour, ""))
    high = max(max(values) for values, _, _ in courses) or 1.0
    keys = [("after the layer", "currentColor", "solid"), ("before it", "currentColor", "dotted")]
    keys += [("added by the mixer", colour, "solid")] if form != "stack" else []
    keys += [("added by the MLP", BASELINE.colour, "dashed")] if row["mlp"] else []
    legend = "".join(
        f'<span><b style="border-top:2px {dash} {paint}"></b>{name}</span>' for name, paint, dash in keys
    )
    values = json_in_page({"after": row["hidden"], "before": row["before"], "mixer adds": row["added"],
                    **({"MLP adds": row["mlp"]} if row["mlp"] else {})})  # fmt: skip
    return (
        f'<figure class="course"><figcaption><b>Norm of the hidden vector</b> {legend}</figcaption>'
        f'<div class="plot norms" data-values="{escape(values)}"><em>{numbers.significant(high, 2)}</em>'
        f"{lines(courses, 0.0, high, 'norm of the hidden vector over time')}"
        f'<i class="cursor"></i></div></figure>'
    )


def _strip(strip: Row, mixer: str, colour: str) -> str:
    """A gate or step size: its mean over time, and a row for each unit."""
    title, meaning = _STRIPS.get((mixer, strip["name"]), (strip["name"], ""))
    relative = strip["scale"] == "ratio"
    profile, floor, top = strip["profile"], min(strip["profile"]), max(strip["profile"])
    mean = "mean" if strip["scale"] in ("unit", "linear") else "geometric mean"
    shown = {key: strip[key] for key in ("scale", "low", "high", "rows", "columns", "units")}
    unit = {"lstm": "cells", "gru": "units", "rnn": "units"}.get(mixer, "channels")
    count = f"all {strip['of']}" if strip["rows"] == strip["of"] else f"{strip['rows']} of {strip['of']}"
    kind = f"{count} {unit}, " + ("those that change most" if relative else "the largest") + " on top"
    if strip["group"] > 1:
        kind += f"; means of {strip['group']} steps"
    picture = heat(strip["data"], strip["rows"], strip["columns"], colour)
    return (
        f'<figure class="strip"><figcaption><b>{title}</b> <span>{meaning}</span>{_ramp(strip, colour)}'
        f'</figcaption><div class="plot profile" data-name="{mean}" '
        f'data-profile="{escape(json_in_page(profile))}"><em>{_short(top)}</em>'
        f'<em class="low">{_short(floor)} {mean}</em>{_profile(profile, floor, top, title, colour)}'
        f'<i class="cursor"></i></div><div class="plot heat" data-strip="{escape(json_in_page(shown))}">'
        f'<img alt="{escape(title)}: {kind}" src="{picture}" '
        f'style="height:{max(36, min(120, strip["rows"] * 2))}px"><i class="cursor"></i></div>'
        f"<small>{kind}</small></figure>"
    )


def _short(value: float) -> str:
    return numbers.significant(value, 2)


def _profile(profile: Sequence[float], floor: float, top: float, title: str, colour: str) -> str:
    room = (top - floor) * 0.1 or 1e-9
    return lines([(profile, colour, "")], floor - room, top + room, f"mean over time: {title}")


def _ramp(strip: Row, colour: str) -> str:
    """What the lightest and the darkest shade stand for."""
    low, high = _short(strip["low"]), _short(strip["high"])
    if strip["scale"] == "ratio":
        low, high = f"{low}{TIMES}", f"{high}{TIMES} its mean"
    shade = f"background:linear-gradient(90deg,transparent,{colour})"
    return f'<span class="ramp">{low}<u style="{shade}"></u>{high}</span>'


def time_axis(steps: int, labels: Sequence[str]) -> str:
    """Under what runs over time: the tokens where there is room for them, and numbers of steps."""
    told = ""
    if labels and steps <= _TOKENS:
        told = (
            '<div class="tokens" aria-hidden="true">'
            + "".join(f"<i>{escape(label[:3])}</i>" for label in labels[:steps])
            + "</div>"
        )
    marks = "".join(mark((step - 0.5) / steps * 100, f"{step:,}") for step in ticks(steps))
    return f'{told}<div class="scale steps">{marks}</div>'


def _distribution(row: Row) -> str:
    """The histogram of effective memory lengths; of attention how far each head looks back."""
    memory, attends = row.get("memory"), row["mixer"] == "attention"
    by = escape((row["memory_by"][:1].upper() + row["memory_by"][1:]).replace(" x ", f" {TIMES} "))
    if not memory:
        told = f"{by}." if by else "Nothing is known of how this kind of layer remembers."
        return f'<figure class="spread"><h3>Effective memory</h3><p>{told}</p></figure>'
    drawn = _heads(memory["values"]) if attends else _histogram(memory) + _five(memory)
    if memory["never"]:
        drawn += f"<p>{memory['never']:,} of {memory['count']:,} do not fade within the input.</p>"
    title = "Steps looked back, by head" if attends else "Effective memory, steps"
    return f'<figure class="spread"><h3>{title}</h3>{drawn}<figcaption>{by}.</figcaption></figure>'


def _heads(values: Sequence[float]) -> str:
    most = max(values, default=1.0) or 1.0
    bars = "".join(
        f'<li><u style="width:{value / most * 100:.1f}%"></u><b>{steps_of(value)}</b></li>'
        for value in values
    )
    return f'<ol class="heads">{bars}</ol>'


def _histogram(memory: Row) -> str:
    counts, edges = memory["counts"], memory["edges"]
    if not counts:
        return ""
    scale, most = LogAxis(edges[0], edges[-1]), max(counts)
    bars = ""
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        left, right = scale.at(low), scale.at(high)
        place = f"left:{left}%;width:{right - left:.2f}%;height:{count / most * 100:.1f}%"
        bars += f'<i title="{steps_of(low)} to {steps_of(high)} steps: {count:,}" style="{place}"></i>'
    for kind, value in zip(("quarter", "half", "quarter"), memory["quartiles"][1:4], strict=True):
        if value is not None:
            bars += f'<s class="{kind}" style="left:{scale.at(value)}%"></s>'
    return f'<div class="histogram">{bars}</div><div class="scale">{axis(scale)}</div>'


def _five(memory: Row) -> str:
    names = ("shortest", "25 %", "half", "75 %", "longest")
    told = "".join(
        f"<div><dt>{name}</dt><dd>{steps_of(value)}</dd></div>"
        for name, value in zip(names, memory["quartiles"], strict=True)
    )
    return f'<dl class="five">{told}</dl>'


def _maps(row: Row, colour: str) -> str:
    maps = row["maps"]
    group, side = maps["group"], maps["side"]
    sizes = escape(json_in_page({"side": side, "group": group}))
    drawn = ""
    for index, data in enumerate(maps["data"]):
        told = words.head(row["heads"][index]) if row["heads"] else ""
        drawn += (
            f'<figure class="map"><figcaption><b>Head {index + 1}</b> {escape(told)}</figcaption>'
            f'<div class="square" data-map="{sizes}"><img alt="attention of head {index + 1}" '
            f'src="{heat(data, side, side, colour)}"></div></figure>'
        )
    joined = ""
    if group > 1:
        cell = f"{group}{NBSP}{TIMES}{NBSP}{group} steps"
        joined = f" A cell is {cell}: what {group} steps read of {group} together."
    return (
        '<h3 class="maps-title">Attention maps</h3>'
        '<p class="under">A row is the step that reads, from top to bottom; a column the step that is read. '
        f"Every row sums to 1; the shade is the square root of the weight.{joined}</p>"
        f'<div class="maps">{drawn}</div>'
    )
