"""Records of a reproduction -> our numbers beside the published ones, as strings. No torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple

from quatrain.errors import DataError
from quatrain.lab.paper.metric import METRICS, best_rate, value_of
from quatrain.report.evidence import quantile

Row = dict[str, Any]
_INTERVAL = 3  # seeds from which on an interval is given


class Number(NamedTuple):
    """The mean over seeds of one quantity, the values it is of, and half of its 95 % interval (or None)."""

    mean: float
    values: tuple[float, ...]
    half: float | None


@dataclass(frozen=True)
class Model:
    """One model of the table: what was found of it so far."""

    name: str
    params: int | None
    lr: float | None
    wanted: int  # seeds asked for
    by_length: Mapping[int, Mapping[int, Row]] = field(default_factory=dict)  # length -> seed -> tested row
    recipe: Row = field(default_factory=dict)
    troubles: tuple[str, ...] = ()  # cells that gave no number, with their reasons
    steps: int | None = None
    seconds: float | None = None

    @property
    def refused(self) -> bool:
        """Whether a cell has no number because its model sees the future."""
        return any("sees the future" in trouble for trouble in self.troubles)

    def number(self, lengths: Sequence[int], metric: str) -> Number | None:
        """The mean over ``lengths`` of a metric for each seed that has them all; None where no seed has."""
        seeds = [
            seed for seed in range(self.wanted) if all(seed in self.by_length.get(n, {}) for n in lengths)
        ]
        values = [fmean(value_of(self.by_length[n][seed], metric) for n in lengths) for seed in seeds]
        if not values or not lengths:
            return None
        half = (
            quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
            if len(values) >= _INTERVAL
            else None
        )
        return Number(fmean(values), tuple(values), half)


@dataclass(frozen=True)
class Reproduction:
    """A reproduction as a reader sees it: ``header`` and ``rows`` of strings, accuracies by length, notes."""

    title: str
    about: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lengths: tuple[tuple[str, ...], ...]  # first row: the header; empty where only one length was tested
    notes: tuple[str, ...]
    models: tuple[Model, ...]

    @property
    def markdown(self) -> str:
        """The tables in Markdown."""
        parts = [f"# {self.title}", "", *self.about, "", *_grid([self.header, *self.rows])]
        if self.lengths:
            parts += ["", *_grid(self.lengths)]
        if self.notes:
            parts += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(parts) + "\n"


def reproduction(
    rows: Iterable[Row],
    *,
    names: Sequence[str] = (),
    seeds: int = 0,
    failed: Mapping[str, str] | None = None,
) -> Reproduction:
    """The tables of a reproduction's records, for the models ``names`` and ``seeds`` seeds of each (0: its
    own number).

    ``failed`` are cells without a number in the last call, by key, with their reasons: what is missing is
    said, never left out. Raises DataError where the rows are of something else.
    """
    found = list(rows)
    about = next((row for row in found if row["kind"] == "paper"), None)
    if about is None:
        raise DataError("the records hold no reproduction")
    recipe = about["recipe"]
    wanted = tuple(names) or tuple(recipe["models"])
    runs = {name: seeds or recipe["models"][name].get("seeds") or recipe["seeds"] for name in wanted}
    models = tuple(_model(name, found, recipe, runs[name], failed or {}) for name in wanted)
    metric = recipe["test"]["metric"]
    headline = recipe["test"]["headline"] or [max(recipe["test"]["lengths"])]
    where = (
        f"at {headline[0]:,}" if len(headline) == 1 else f"mean of {', '.join(f'{n:,}' for n in headline)}"
    )
    header = ("", "parameters", "rate", "seeds", "ours", "published", "target", "")
    table = tuple(_line(model, headline, metric) for model in models)
    published = f"Settings as published: {about['source']}." if about["source"] else "Settings of your own."
    says = [f"Reduced: {about['reduced']}. After {about['source']}." if about["reduced"] else published]
    says += [f"Differs: {about['differs']}." if about["differs"] else ""]
    says += [f"Ours: {METRICS[metric]}, {where}; {_over(max(runs.values(), default=1))}."]
    return Reproduction(
        about["title"],
        tuple(line for line in says if line),
        header,
        table,
        _lengths(models, metric),
        tuple(note for model in models for note in _notes(model)),
        models,
    )


def _over(seeds: int) -> str:
    """What a number of the table is of, where a model has at most so many seeds."""
    if seeds == 1:
        return "one seed each, so without an interval"
    interval = ", from three seeds on \N{PLUS-MINUS SIGN} 95 % interval" if seeds >= _INTERVAL else ""
    return f"mean (range) over seeds{interval}; a single seed has none"


def _model(name: str, rows: Sequence[Row], recipe: Row, seeds: int, failed: Mapping[str, str]) -> Model:
    mine = [row for row in rows if row.get("mixer") == name]
    cells = [row for row in mine if row["kind"] == "cell"]
    fine = [row for row in cells if row["status"] == "ok"]
    rates = recipe["models"][name]["learning_rates"]
    first = {row["lr"]: row for row in fine if row["seed"] == 0}
    lr = best_rate(first)
    tried = {row["lr"] for row in cells if row["seed"] == 0} >= set(rates)
    tested: dict[int, dict[int, Row]] = {}
    for row in mine:
        if row["kind"] == "tested" and row["status"] == "ok" and row["lr"] == lr and tried:
            tested.setdefault(row["length"], {})[row["seed"]] = row
    troubles = [
        f"learning rate {row['lr']:g}, seed {row['seed']}: "
        f"{'sees the future, not tested' if row['status'] == 'leak' else row['status']}: {row['reason']}"
        for row in cells
        if row["status"] != "ok" and row["seed"] < seeds
    ]
    for key, reason in failed.items():
        kind, who, rate, *place = key.split("/")
        if who == name:
            what = f"learning rate {float(rate):g}, seed {place[0]}"
            tested_at = f", tested at {int(place[1]):,}" if kind == "test" else ""
            troubles.append(f"{what}{tested_at}: failed: {reason}")
    params = next((row["params"] for row in mine if row["kind"] == "model"), None)
    chosen = [row for row in fine if row["lr"] == lr]
    return Model(
        name,
        params,
        lr if tried else None,
        seeds,
        {length: tested[length] for length in sorted(tested)},
        recipe["models"][name],
        tuple(troubles),
        chosen[0]["steps"] if chosen else None,
        fmean(row["train_seconds"] for row in chosen) if chosen else None,
    )


def _line(model: Model, headline: Sequence[int], metric: str) -> tuple[str, ...]:
    number, at = model.number(headline, metric), ""
    if number is None and model.by_length:  # it was not tested so far: the longest it was tested on
        longest = max(model.by_length)
        number, at = model.number([longest], metric), f" at {longest:,}"
    shown = f"{spread(number, metric)}{at}" if number else _why_none(model)
    count = f"{len(number.values) if number else 0}" + (
        "" if number and len(number.values) == model.wanted else f" of {model.wanted}"
    )
    published = "; ".join(_published(item, metric, headline) for item in model.recipe["published"])
    return (
        model.name,
        "" if model.params is None else f"{model.params:,}",
        "" if model.lr is None else f"{model.lr:g}",
        count,
        shown,
        published or "-",
        _says(model.recipe["target"]) or "-",
        verdict(model, headline, metric),
    )


def verdict(model: Model, headline: Sequence[int], metric: str) -> str:
    """ "reached" or "missed" where there is a target, "unfinished" where seeds or lengths are missing."""
    target = model.recipe["target"]
    if not _says(target):
        return ""
    lengths = target["at"] or headline
    every = (
        [model.number([length], metric) for length in lengths]
        if target["at"]
        else [model.number(headline, metric)]
    )
    if any(number is None or len(number.values) < model.wanted for number in every):
        return "failed" if model.troubles else "unfinished"
    low, high = _bounds(target)
    fine = all(number is not None and low <= number.mean <= high for number in every)
    return "reached" if fine else "missed"


def spread(number: Number, metric: str) -> str:
    """``99.2 % (98.9 to 99.5)``: the mean and its range over seeds; from three seeds on with ``+- 0.3``, half
    of a 95 % t interval.
    """
    share = metric.endswith("accuracy")
    text = value_text(number.mean, metric)
    if len(number.values) == 1 or min(number.values) == max(number.values):
        return text
    low, high = (
        value_text(end, metric).removesuffix(" %") for end in (min(number.values), max(number.values))
    )
    if number.half is None:
        return f"{text} ({low} to {high})"
    half = number.half * (100 if share else 1)
    digits = f"{half:.0f}" if half >= 10 else f"{half:.2g}"
    return f"{text} ({low} to {high}) \N{PLUS-MINUS SIGN} {digits}"


def value_text(value: float, metric: str) -> str:
    """A share in per cent that never rounds up to 100, a loss with three digits."""
    if not metric.endswith("accuracy"):
        return f"{value:.3g}"
    if value < 1 and value >= 0.9995:
        return f"{math.floor(value * 1e4) / 100:.2f} %"
    return "100 %" if value == 1 else f"{100 * value:.1f} %"


def _why_none(model: Model) -> str:
    if model.refused:
        return "refused"
    return "failed" if model.troubles else "not run yet"


def _bounds(target: Row) -> tuple[float, float]:
    """Least and most; the records write infinity, which stands for no bound, as null."""
    low, high = target["least"], target["most"]
    return -math.inf if low is None else low, math.inf if high is None else high


def _says(target: Row) -> str:
    low, high = _bounds(target)
    if math.isfinite(low):
        return f">= {low:g}"
    return f"<= {high:g}" if math.isfinite(high) else ""


def _published(item: Row, metric: str, headline: Sequence[int]) -> str:
    at = f" at {item['length']:,}" if item["length"] and [item["length"]] != list(headline) else ""
    return f"{value_text(item['value'], metric)}{at}"


def _lengths(models: Sequence[Model], metric: str) -> tuple[tuple[str, ...], ...]:
    lengths = sorted({length for model in models for length in model.by_length})
    if len(lengths) < 2:
        return ()
    lines = [("tested at", *(model.name for model in models))]
    for length in lengths:
        numbers = [model.number([length], metric) for model in models]
        lines.append((f"{length:,}", *("" if one is None else spread(one, metric) for one in numbers)))
    return tuple(lines)


def _notes(model: Model) -> Iterable[str]:
    for trouble in model.troubles:
        yield f"{model.name}: {trouble}"
    if model.recipe["longest"]:
        why = f": {model.recipe['why']}" if model.recipe["why"] else ""
        yield f"{model.name}: not tested beyond {model.recipe['longest']:,} steps{why}"
    fewest = min(
        (row["sequences"] for seeds in model.by_length.values() for row in seeds.values()), default=0
    )
    if 0 < fewest < 64:
        yield f"{model.name}: {fewest} sequences of the longest length"
    for item in model.recipe["published"]:
        note = f" ({item['note']})" if item["note"] else ""
        yield f"{model.name}: published {item['value']:g}: {item['source']}{note}"


def _grid(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = lines
    rule = "|" + "---|" + "---:|" * (len(head) - 1)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in rest)]
