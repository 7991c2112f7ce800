"""The pictures of the claims' page, by claim: rows to figures; without its rows one says what is missing."""

import math
from collections.abc import Callable, Mapping

from quatrain.report import numbers
from quatrain.report._claim_costs import (
    attention_memory,
    by_batch,
    cache,
    cost,
    crossing,
    far,
    generating,
    quadratic,
    scan,
    training,
)
from quatrain.report._claim_drawing import (
    LOOKS,
    ORDER,
    Found,
    Row,
    by_length,
    family,
    legend_of,
    of,
    series,
    spaced,
    styles_of,
)
from quatrain.report._heat import grid
from quatrain.report.charts import Axis, Drawing, Point, bars, lines
from quatrain.report.figures import Figure
from quatrain.report.reproduction import value_text
from quatrain.report.styles import STYLES, Style

_FLOOR = 1e-12  # of the largest: what lies below is cut off


def _norms(found: Found, styles: Mapping[Style, list[Row]], key: str, title: str, caption: str) -> Figure:
    points: list[Point] = []
    for style, rows in styles.items():
        points += series(rows, style, "k", "norm")
    if not points:
        return Figure(key, title, caption, (), missing="The gradient was not measured.")
    most = max(point.y for point in points)
    y = Axis("gradient norm", "scientific", (max(min(p.y for p in points), most * _FLOOR), most))
    tips = [("x", "k", ",d"), ("y", "norm", ".2e")]
    marks = spaced(points)
    shown = list(styles)
    spec = lines(Drawing(shown, points, Axis("k (tokens back)"), y, tips, marks, height=280))
    return Figure(key, title, caption, (("", spec),), legend_of(shown, _rates(found, styles)))


def _rates(found: Found, styles: Mapping[Style, list[Row]]) -> dict[str, str]:
    remarks = {}
    for style, rows in styles.items():
        if rows:
            same = {key: rows[0].get(key) for key in ("mixer", "radius", "bias", "whole")}
            for rate in of(found, "rate", **same)[:1]:
                remarks[style.name] = f"{numbers.TIMES}{rate['value']:.3f} a step"
    return remarks


def _gradient(mixer: str, field: str, name: str, key: str, title: str) -> Callable[[Found], Figure]:
    def make(found: Found) -> Figure:
        rows = [row for row in of(found, "gradient", mixer=mixer) if row.get(field) is not None]
        values = sorted({float(row[field]) for row in rows})
        styles = family(mixer, [f"{name} {value:g}" for value in values])
        each = [[row for row in rows if row[field] == value] for value in values]
        caption = (
            "Norm of the gradient of the last token's loss by the input k tokens earlier, on a log scale: a "
            "straight line vanishes or explodes exponentially. Geometric mean over five sets of first "
            "weights."
        )
        return _norms(found, dict(zip(styles, each, strict=True)), key, title, caption)

    return make


def reach(found: Found) -> Figure:
    """The gradient against distance of the four whole models."""
    styles = {STYLES[mixer]: of(found, "gradient", mixer=mixer, whole=True) for mixer in ORDER[:4]}
    caption = "As for the RNN, of whole models of equal size before any training."
    return _norms(found, styles, "reach", "How far back the loss reaches, at first weights", caption)


def retention(found: Found) -> Figure:
    """What is left of a written cell value against steps, by forget bias, and after training."""
    title, y = "What is left of a value in the cell", Axis("part left", "scientific", (1e-4, 1.0))
    rows = of(found, "retention")
    biases = sorted({float(row["bias"]) for row in rows if row.get("bias") is not None})
    trained = of(found, "retention", trained=True)
    styles = family(
        "lstm", [*(f"forget bias {bias:g}" for bias in biases), *(["trained"] if trained else [])]
    )
    each = [[row for row in rows if row.get("bias") == bias] for bias in biases] + (
        [trained] if trained else []
    )
    points: list[Point] = []
    for style, mine in zip(styles, each, strict=True):
        points += series(mine, style, "k", "kept")
    caption = "Median over cells; the trained one reads blanks only. Below 0.0001 the axis ends."
    if not points:
        return Figure("retention", title, caption, (), missing="What a cell keeps was not measured.")
    tips = [("x", "steps", ",d"), ("y", "left", ".2e")]
    axis = Axis("steps since it was written", "log")
    spec = lines(Drawing(styles, points, axis, y, tips, _near(points), height=280))
    return Figure("retention", title, caption, (("", spec),), legend_of(styles))


def _near(points: list[Point]) -> list[Point]:
    """Every other point, for lines whose points already lie at even distances of a logarithm."""
    return points[::2]


def parallel(found: Found) -> Figure:
    """How many times less a token costs in one pass than in steps, against length."""
    title, caption = (
        "What one pass over all saves",
        "Time of one step over time per token of one pass of that length.",
    )
    points: list[Point] = []
    for mixer in ORDER[:4]:
        steps = {row["context"]: row.get("median") for row in of(found, "step", mixer=mixer, batch=1)}
        for row in sorted(of(found, "cost", mixer=mixer, mode="read"), key=lambda row: float(row["length"])):
            step = steps.get(row["length"])
            if step:
                points.append(
                    Point(STYLES[mixer].name, row["length"], step / (row["median"] / row["length"]))
                )
    if not points:
        return Figure("parallel", title, caption, (), missing="Steps and passes were not both timed.")
    axis = Axis("times cheaper per token", "log")
    spec = by_length(points, styles_of(points), axis, ("y", "times", ".3~r"), "length")
    return Figure("parallel", title, caption, (("", spec),), legend_of(styles_of(points)))


def kernels(found: Found) -> Figure:
    """The impulse response of some S4D channels as convolution (lines) and as recurrence (marks)."""
    title = "One system, two ways"
    caption = "Answers of three channels of S4D to an impulse: lines by convolution, marks by recurrence."
    rows = of(found, "kernel")
    channels = list(dict.fromkeys(row["channel"] for row in rows))
    styles = family("s4d", [f"channel {channel}" for channel in channels])
    points: list[Point] = []
    marks: list[Point] = []
    for channel, style in zip(channels, styles, strict=True):
        mine = [row for row in rows if row["channel"] == channel]
        most = max(abs(row["convolution"]) for row in mine) or 1.0
        points += [Point(style.name, row["t"], row["convolution"] / most) for row in mine]
        marks += [
            Point(style.name, row["t"], row["recurrence"] / most) for row in mine[:: max(1, len(mine) // 24)]
        ]
    if not points:
        return Figure("kernels", title, caption, (), missing="S4D was not run both ways.")
    tips = [("x", "step", ",d"), ("y", "response", ".4f")]
    axis = Axis("steps after the impulse"), Axis("response, largest = 1")
    spec = lines(Drawing(styles, points, *axis, tips, marks, height=260))
    return Figure("kernels", title, caption, (("", spec),), legend_of(styles))


def scores(task: str, key: str, title: str) -> Callable[[Found], Figure]:
    """Recorded scores of a task: against the length tested where there are several, else as bars."""

    def make(found: Found) -> Figure:
        rows = [row for row in of(found, "score", task=task) if isinstance(row.get("value"), int | float)]
        if not rows:
            return Figure(key, title, "", (), missing="")
        metric = str(rows[0].get("metric") or "")
        metric = "mean squared error" if (task, metric) == ("adding", "loss") else metric
        scale = 100.0 if "accuracy" in metric else 1.0
        axis = f"{metric} (%)" if scale > 1 else metric
        by: dict[str, dict[float, list[float]]] = {}
        for row in rows:
            at = float(row.get("at") or row.get("length") or 0)
            name = f"{row['mixer']}/{row.get('model') or row['mixer']}/{row.get('params') or ''}"
            by.setdefault(name, {}).setdefault(at, []).append(scale * float(row["value"]))
        source = dict.fromkeys(f"{row.get('machine', '')}, {row.get('date', '')}" for row in rows)
        most = max(len(each) for values in by.values() for each in values.values())
        says = "One seed each" if most == 1 else f"Mean over up to {most} seeds"
        caption = f"{says}. Recorded: {'; '.join(source)}."
        lengths = {at for values in by.values() for at in values}
        looks = _looks(by)
        if len(lengths) > 2:
            points = [
                Point(looks[name].name, at, math.fsum(each) / len(each))
                for name, values in by.items()
                for at, each in sorted(values.items())
            ]
            y = Axis(axis, "linear", (0.0, 102.0)) if scale > 1 else Axis(axis)  # a mark at 100 whole
            tips = [("x", "length", ",d"), ("y", axis, ".4~r")]
            x = Axis("length tested (tokens)", "contexts")
            spec = lines(Drawing(list(looks.values()), points, x, y, tips, height=260))
            return Figure(key, title, caption, (("", spec),), legend_of(list(looks.values())))
        common = lengths.intersection(*by.values())  # what was read further by some is not compared
        if common and len(lengths) > 1:
            caption = f"At {max(common):,.0f} tokens. {caption}"
        entries = []
        for name, values in by.items():
            each = tuple(values[max(common or values)])
            entries.append((looks[name], math.fsum(each) / len(each), each))
        whole = 100.0 if scale > 1 else None
        return Figure(key, title, caption, (("", bars(entries, axis, _shown(scale), whole)),))

    return make


def _shown(scale: float) -> Callable[[float], str]:
    """A number at a bar: a share in per cent that never rounds up to 100, else four digits."""
    return lambda value: value_text(value / scale, "token_accuracy") if scale > 1 else f"{value:.4g}"


def _looks(by: Mapping[str, object]) -> dict[str, Style]:
    """A style for each architecture; where one has several models, the size stands in its name, or that of
    the model where sizes are nearly alike.
    """
    parts = [name.split("/") for name in by]
    mixers = [mixer for mixer, _, _ in parts]
    looks = {}
    for name, (mixer, model, params) in zip(by, parts, strict=True):
        style = STYLES.get(mixer) or STYLES["gru"]._replace(name=mixer)
        sizes = [float(size) for other, _, size in parts if other == mixer and size]
        if mixers.count(mixer) > 1 and sizes and max(sizes) < 1.5 * min(sizes):
            own = style.name if model == mixer else f"{style.name}, {model}"
            dash, shape = LOOKS[list(by).index(name) % len(LOOKS)]
            style = Style(own, style.colour, dash, shape)
        elif mixers.count(mixer) > 1 and params:
            turn = list(by).index(name) % len(LOOKS)
            dash, shape = LOOKS[turn]
            style = Style(f"{style.name}, {numbers.count(float(params))}", style.colour, dash, shape)
        looks[name] = style
    return looks


def heat(mixer: str, key: str, title: str, caption: str) -> Callable[[Found], str]:
    """Maps of one architecture as a figure of small pictures, in HTML; empty without rows."""

    def make(found: Found) -> str:
        rows = of(found, "map", mixer=mixer)
        return grid(rows, STYLES[mixer].colour, key, title, caption) if rows else ""

    return make


FIGURES: Mapping[str, Callable[[Found], Figure]] = {
    "rnn-cost": cost,
    "rnn-gradient": _gradient(
        "rnn", "radius", "spectral radius", "rnn-reach", "Gradient against distance, RNN"
    ),
    "lstm-gradient": _gradient(
        "lstm", "bias", "forget bias", "lstm-reach", "Gradient against distance, LSTM"
    ),
    "lstm-cell": retention,
    "lstm-long": scores("adding", "adding", "Adding problem"),
    "transformer-parallel": parallel,
    "transformer-reach": reach,
    "transformer-quadratic": quadratic,
    "transformer-memory": attention_memory,
    "transformer-cache": cache,
    "mamba-constant": far,
    "mamba-ssm": kernels,
    "mamba-selection": scores("selective_copying", "selective", "Selective copying"),
    "mamba-long": scores("induction_heads", "induction", "Induction heads"),
    "mamba-fused": scan,
    "speed-generation": generating,
    "speed-training": training,
    "speed-crossing": crossing,
    "speed-batch": by_batch,
    "quality-twice": scores("wikitext2", "wikitext", "WikiText-2"),
    "loses-parity": scores("parity", "parity", "Parity"),
    "loses-recall": scores("mqar", "mqar", "Multi-query associative recall"),
    "loses-audio": scores("raw_audio", "audio", "Raw audio"),
}
HEAT: Mapping[str, Callable[[Found], str]] = {
    "lstm-gates": heat(
        "lstm",
        "gates",
        "Three gates over one sequence",
        "24 cells (rows) over time; dark is open, 1, and light is shut, 0. Below: the tokens read, content "
        "as digits, blanks as dots, then the questions.",
    ),
    "transformer-heads": heat(
        "attention",
        "heads",
        "What each head looks at",
        "Row t says how much position t reads of each position; dark is much. The same sequence for all.",
    ),
    "mamba-steps": heat(
        "s6",
        "step-sizes",
        "Step sizes over one sequence",
        "24 channels (rows), each relative to its own largest step; those above take larger steps on "
        "content, those below on blanks.",
    ),
}
SEEN_IN: Mapping[str, str] = {
    "lstm-cost": "rnn-cost",
    "mamba-linear": "rnn-cost",
    "loses-short": "speed-training",
    "quality-equal": "quality-twice",
}
