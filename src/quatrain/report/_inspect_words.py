"""What the numbers of an inspected model say, in sentences, each left out where its numbers are missing."""

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.report import numbers
from quatrain.report.numbers import listed, percent, significant
from quatrain.report.styles import STYLES

Row = Mapping[str, Any]

_VISIBLE = {
    " ": "\N{OPEN BOX}",
    "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
    "\t": "\N{RIGHTWARDS ARROW}",
    "\r": "\\r",
}
_UNITS = {
    "lstm": "cells",
    "gru": "units",
    "rnn": "units",
    "s6": "states",
    "s4d": "modes",
    "attention": "heads",
}


def visible(token: str) -> str:
    """A token with its blanks and line ends to be seen."""
    shown = "".join(
        _VISIBLE.get(char, char if char.isprintable() else f"\\x{ord(char):02x}") for char in token
    )
    return shown or "(nothing)"


def quoted(token: str) -> str:
    """The same in quotation marks."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{visible(token)}\N{RIGHT DOUBLE QUOTATION MARK}"


def name_of(mixer: str) -> str:
    """What an architecture is called."""
    return STYLES[mixer].name if mixer in STYLES else mixer


def names_of(about: Row) -> str:
    """The architecture of a model; of a hybrid all of them, each once."""
    names = [name_of(mixer) for mixer in dict.fromkeys(about["kinds"])]
    return names[0] if len(names) == 1 else f"A hybrid of {listed(names)}"


def headline(rows: Sequence[Row]) -> str:
    """The first line of the page: the model, the input and what came of it."""
    about = rows[0]
    what = f"{names_of(about)} reads {about['steps']:,} {about['unit']}{'s' if about['steps'] != 1 else ''}"
    for row in rows:
        if row["kind"] == "text" and row.get("nats") is not None:
            return f"{what} at {numbers.loss(row['nats'])} nats per {about['unit']}"
        if row["kind"] == "answer":
            if row.get("classes"):
                name, chance = row["classes"][0]
                return f"{what} and says {quoted(name)} ({percent(chance)})"
            if row.get("text"):
                return f"{what} and hears {quoted(row['text'][:60])}"
            if row.get("mean"):
                ahead = len(row["mean"][0])
                return f"{what} and forecasts {ahead} more"
            if row.get("task") == "tag":
                return f"{what} and tags them"
    return what


def layer(row: Row, form: str) -> list[str]:
    """What to see in a layer."""
    said = {"lstm": _lstm, "gru": _gru, "attention": _attention, "s6": _s6, "s4d": _s4d}
    own = said[row["mixer"]](row) if row["mixer"] in said else []
    found = [*own, *_memory(row), _norms(row, form)]
    if row["mixer"] == "rnn":
        found.insert(1, "An RNN has no gates: every unit is rewritten at every step." + _saturated(row))
    return found


def _saturated(row: Row) -> str:
    state = _strip(row, "state")
    if state is None or state["scale"] != "unit":
        return ""
    return f" In {percent(state['above'])} of all units and steps |h| is above 0.9, where tanh is saturated."


def _strip(row: Row, name: str) -> Row | None:
    return next((strip for strip in row["strips"] if strip["name"] == name), None)


def _ends(strip: Row, highest: str, lowest: str) -> str:
    """At which tokens a gate is largest and smallest; nothing where they hardly differ or none comes often.

    A step size is given as a multiple of the channels' own mean.
    """
    at, ratio = strip["at"], strip["scale"] == "ratio"
    if len(at) < 4:
        return ""
    (top, most, _), (bottom, least, _) = at[0], at[-1]
    if most < 1.2 * least if ratio else most - least < 0.05:
        return ""
    first, second = f"{_number(most)} on average", _number(least)
    if ratio:
        first, second = f"{numbers.times(most)} their mean", numbers.times(least)
    return f" {highest} {quoted(top)} ({first}), {lowest} {quoted(bottom)} ({second})."


def _number(value: float) -> str:
    return significant(value, 2)


def steps(value: float) -> str:
    """A number of steps to two digits: 0.19, 14, 3,100."""
    return _number(value) if value < 1000 else f"{float(f'{value:.2g}'):,.0f}"


def _lstm(row: Row) -> list[str]:
    return _keeping(row, "forget", "cell", "Cells keep most at", "and let go most at")


def _gru(row: Row) -> list[str]:
    return _keeping(row, "update", "unit", "Units keep most at", "and are rewritten most at")


def _keeping(row: Row, name: str, unit: str, highest: str, lowest: str) -> list[str]:
    gate = _strip(row, name)
    if gate is None:
        return []
    text = (
        f"The {name} gate is {_number(gate['mean'])} on average: above 0.9, where a {unit} keeps what it "
        f"holds, in {percent(gate['above'])} of all {unit}s and steps, below 0.1 in {percent(gate['below'])}."
    )
    return [text + _ends(gate, highest, lowest)]


def _s6(row: Row) -> list[str]:
    step = _strip(row, "step")
    if step is None or step["scale"] != "ratio":  # of one step nothing changes
        return []
    middle, most = step["swing"]
    text = (
        f"The input changes the step size {numbers.times(middle)[:-1]}-fold in the middle channel, "
        f"{numbers.times(most)[:-1]}-fold in the most selective one (from 5 to 95 % of the steps)."
    )
    return [
        text
        + _ends(
            step,
            "The most selective tenth takes its largest steps, and so writes most, at",
            "its smallest at",
        )
    ]


def _s4d(row: Row) -> list[str]:
    step = _strip(row, "step")
    if step is None:
        return []
    low, high = numbers.significant(step["low"], 2), numbers.significant(step["high"], 2)
    return [
        f"The step size does not depend on the input: {low} to {high} by channel, the same at every step."
    ]


def _attention(row: Row) -> list[str]:
    heads = row["heads"]
    if not heads:
        return []
    text = f"{numbers.spelled(len(heads)).capitalize()} head{'s' if len(heads) > 1 else ''}: "
    near = min(range(len(heads)), key=lambda head: heads[head]["distance"])
    far = max(range(len(heads)), key=lambda head: heads[head]["distance"])
    told = [f"head {near + 1} {head(heads[near])}"]
    if far != near:
        told.append(f"head {far + 1} {head(heads[far])}")
    return [f"{text}{'; '.join(told)}."]


def head(found: Row) -> str:
    """What a head does, in a few words."""
    if found["previous"] >= 0.4:
        return f"reads the step before ({percent(found['previous'])})"
    if found["self"] >= 0.4:
        return f"reads the step itself ({percent(found['self'])})"
    if found["first"] >= 0.3:
        return f"rests on the first step ({percent(found['first'])})"
    back, spread = _number(found["distance"]), _number(found["count"])
    return f"looks {back} steps back on average, spread as over {spread} steps"


def _memory(row: Row) -> list[str]:
    memory = row.get("memory")
    if not memory or row["mixer"] == "attention":
        return []
    _, _, middle, high, longest = memory["quartiles"]
    what = f"{memory['count']:,} {_UNITS.get(row['mixer'], 'units')}"
    if middle is None:
        share = percent(memory["never"] / memory["count"])
        return [f"In {share} of its {what} nothing fades to 1/e within the input."]
    text = f"Half of its {what} have faded to 1/e within {steps(middle)} steps"
    if high is not None:
        text += f", a quarter last {steps(high)} or more"
    return [text + (f", the longest {steps(longest)}." if longest is not None else ".")]


def _norms(row: Row, form: str) -> str:
    before, after, added = (sum(row[key]) / len(row[key]) for key in ("before", "hidden", "added"))
    if form == "stack":
        return f"Its output is {_number(after)} long on average, {_number(before)} goes in."
    text = f"The hidden vector grows from {_number(before)} to {_number(after)}"
    if after < before:
        text = f"The hidden vector shrinks from {_number(before)} to {_number(after)}"
    text += f" (mean norm); the mixer adds {_number(added)}"
    if row.get("mlp"):
        text += f", the MLP {_number(sum(row['mlp']) / len(row['mlp']))}"
    return text + "."


def lines(rows: Sequence[Row]) -> list[str]:
    """For the terminal: the headline, what was left out, and a line for each layer."""
    found = [headline(rows), *rows[0]["notes"]]
    for row in rows:
        if row["kind"] == "layer":
            told = (_attention(row) if row["mixer"] == "attention" else _memory(row)) or [""]
            found.append(f"layer {row['index'] + 1}  {name_of(row['mixer']):<11}  {told[0]}".rstrip())
    return found
