"""The pictures of the claims' page: rows to figures; without its rows one says what is missing."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from quatrain.report import numbers
from quatrain.report._heat import grid
from quatrain.report.charts import Axis, Drawing, Point, Spec, bars, lines
from quatrain.report.figures import Figure, Legend
from quatrain.report.styles import STYLES, Style

Row = Mapping[str, Any]
Found = Mapping[str, Sequence[Row]]  # kind -> rows
ORDER = ("rnn", "lstm", "attention", "s6", "s4d", "gru")
_LOOKS = (  # of lines that share an architecture's colour
    ((1, 0), "circle"),
    ((7, 3), "square"),
    ((2, 2), "triangle-up"),
    ((10, 3, 2, 3), "diamond"),
    ((5, 2, 1, 2), "triangle-down"),
)
_FLOOR = 1e-12  # of the largest: what lies below is cut off


def of(found: Found, kind: str, **fields: object) -> list[Row]:
    """Rows of a kind whose fields are these."""
    return [row for row in found.get(kind, ()) if all(row.get(key) == value for key, value in fields.items())]


def family(mixer: str, names: Sequence[str]) -> list[Style]:
    """Lines of one architecture: its colour, told apart by dash and mark."""
    looks = [_LOOKS[at % len(_LOOKS)] for at in range(len(names))]
    colour = STYLES[mixer].colour
    return [Style(name, colour, dash, shape) for name, (dash, shape) in zip(names, looks, strict=True)]


def _series(rows: Iterable[Row], style: Style, x: str, y: str, scale: float = 1.0) -> list[Point]:
    found = []
    for row in sorted(rows, key=lambda row: float(row[x])):
        value = row.get(y)
        if isinstance(value, int | float) and value > 0:
            found.append(Point(style.name, float(row[x]), scale * float(value)))
    return found


def _legend(styles: Sequence[Style], remarks: Mapping[str, str] | None = None) -> tuple[Legend, ...]:
    return tuple(Legend(style, (remarks or {}).get(style.name, "")) for style in styles)


def _exponents(found: Found, of_: str, **fields: object) -> dict[str, str]:
    """``n = 1.02`` by the name of the architecture."""
    return {
        STYLES[row["mixer"]].name: f"n = {row['value']:.2f}"
        for row in of(found, "exponent", of=of_, **fields)
        if row.get("mixer") in STYLES
    }


def _four(found: Found, kind: str, x: str, y: str, scale: float = 1.0, **fields: object) -> list[Point]:
    points: list[Point] = []
    for mixer in ORDER:
        points += _series(of(found, kind, mixer=mixer, **fields), STYLES[mixer], x, y, scale)
    return points


def _styles(points: Sequence[Point]) -> list[Style]:
    names = {point.name for point in points}
    return [STYLES[mixer] for mixer in ORDER if STYLES[mixer].name in names]


def _lengths(points: list[Point], styles: list[Style], y: Axis, tip: tuple[str, str, str], x: str) -> Spec:
    tips = [("x", x, ",d"), tip]
    return lines(Drawing(styles, points, Axis(f"{x} (tokens)", "contexts"), y, tips, height=230))


def _sized(points: list[Point]) -> list[Point]:
    return [point._replace(text=numbers.size(point.y)) for point in points]


def cost(found: Found) -> Figure:
    """Time and peak memory of a training step against length, all four."""
    title = "Training against length"
    caption = (
        "Time of forward and backward, and peak memory beyond the model, batch of one, equal parameters. n "
        "is the fitted exponent: 1 is linear, 2 quadratic."
    )
    time, held = (
        _four(found, "cost", "length", "median", 1000, mode="train"),
        _four(found, "memory", "length", "bytes", fused=True),
    )
    panels = []
    if time:
        axis = Axis("ms", "log")
        panels.append(("time of a step", _lengths(time, _styles(time), axis, ("y", "ms", ".3~r"), "length")))
    if held:
        axis = Axis("peak memory", "bytes")
        drawn = _lengths(_sized(held), _styles(held), axis, ("s", "memory", ""), "length")
        panels.append(("peak memory", drawn))
    legend = _legend(_styles([*time, *held]), _exponents(found, "train"))
    missing = "" if panels else "Cost against length was not measured."
    return Figure("cost", title, caption, tuple(panels), legend, missing)


def _norms(found: Found, styles: Mapping[Style, list[Row]], key: str, title: str, caption: str) -> Figure:
    points: list[Point] = []
    for style, rows in styles.items():
        points += _series(rows, style, "k", "norm")
    if not points:
        return Figure(key, title, caption, (), missing="The gradient was not measured.")
    most = max(point.y for point in points)
    y = Axis("gradient norm", "scientific", (max(min(p.y for p in points), most * _FLOOR), most))
    tips = [("x", "k", ",d"), ("y", "norm", ".2e")]
    marks = _spaced(points)
    shown = list(styles)
    spec = lines(Drawing(shown, points, Axis("k (tokens back)"), y, tips, marks, height=280))
    return Figure(key, title, caption, (("", spec),), _legend(shown, _rates(found, styles)))


def _rates(found: Found, styles: Mapping[Style, list[Row]]) -> dict[str, str]:
    remarks = {}
    for style, rows in styles.items():
        if rows:
            same = {key: rows[0].get(key) for key in ("mixer", "radius", "bias", "whole")}
            for rate in of(found, "rate", **same)[:1]:
                remarks[style.name] = f"{numbers.TIMES}{rate['value']:.3f} a step"
    return remarks


def _spaced(points: list[Point]) -> list[Point]:
    """Marks at even distances, where points lie dense."""
    step = max((point.x for point in points), default=0.0) / 10
    found: list[Point] = []
    for point in points:
        if not found or found[-1].name != point.name or point.x - found[-1].x >= step:
            found.append(point)
    return found


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
        points += _series(mine, style, "k", "kept")
    caption = "Median over cells; the trained one reads blanks only. Below 0.0001 the axis ends."
    if not points:
        return Figure("retention", title, caption, (), missing="What a cell keeps was not measured.")
    tips = [("x", "steps", ",d"), ("y", "left", ".2e")]
    axis = Axis("steps since it was written", "log")
    spec = lines(Drawing(styles, points, axis, y, tips, _near(points), height=280))
    return Figure("retention", title, caption, (("", spec),), _legend(styles))


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
    spec = _lengths(points, _styles(points), axis, ("y", "times", ".3~r"), "length")
    return Figure("parallel", title, caption, (("", spec),), _legend(_styles(points)))


def _two(mixer: str, names: tuple[str, str]) -> dict[bool, Style]:
    return dict(zip((True, False), family(mixer, names), strict=True))


def _ways(
    found: Found, kind: str, look: str, names: tuple[str, str], y: str, scale: float = 1.0, **fields: object
) -> tuple[list[Style], list[Point]]:
    styles, points = _two(look, names), []
    for fused, style in styles.items():
        points += _series(of(found, kind, fused=fused, **fields), style, "length", y, scale)
    return list(styles.values()), points


ATTENTION = ("fused", "weights in memory")
SCAN = ("fused", "materialised")


def quadratic(found: Found) -> Figure:
    """Time of attention alone against length, both ways."""
    title, caption = (
        "Attention alone",
        "Four heads of 32, batch of one, without gradients; n is the fitted exponent.",
    )
    styles, points = _ways(found, "op", "attention", ATTENTION, "median", 1000, op="attention")
    if not points:
        return Figure("quadratic", title, caption, (), missing="Attention was not timed.")
    fits = {
        row["fused"]: f"n = {row['value']:.2f}" for row in of(found, "exponent", of="op time", op="attention")
    }
    remarks = {style.name: fits.get(fused, "") for fused, style in zip((True, False), styles, strict=True)}
    spec = _lengths(points, styles, Axis("ms", "log"), ("y", "ms", ".3~r"), "length")
    return Figure("quadratic", title, caption, (("", spec),), _legend(styles, remarks))


def attention_memory(found: Found) -> Figure:
    """Peak memory of a Transformer's training step, both ways."""
    title = "Peak memory of a Transformer's training step"
    caption = "Beyond the model itself, batch of one, in a process of its own."
    styles, points = _ways(found, "memory", "attention", ATTENTION, "bytes", mixer="attention")
    if not points:
        return Figure("attention-memory", title, caption, (), missing="Peak memory was not measured.")
    fits = {
        row["fused"]: f"n = {row['value']:.2f}"
        for row in of(found, "exponent", of="memory", mixer="attention")
    }
    remarks = {style.name: fits.get(fused, "") for fused, style in zip((True, False), styles, strict=True)}
    spec = _lengths(_sized(points), styles, Axis("peak memory", "bytes"), ("s", "memory", ""), "length")
    return Figure("attention-memory", title, caption, (("", spec),), _legend(styles, remarks))


def cache(found: Found) -> Figure:
    """State bytes and time of a generated token against context, all four."""
    title = "While generating"
    caption = (
        "Bytes of the state of one sequence, and time of one more token, after a context of that length."
    )
    held = _four(found, "step", "context", "state_bytes", batch=1)
    time = _four(found, "step", "context", "median", 1000, batch=1)
    panels = []
    if held:
        axis = Axis("state", "bytes")
        panels.append(
            ("bytes held", _lengths(_sized(held), _styles(held), axis, ("s", "state", ""), "context"))
        )
    if time:
        axis = Axis("ms per token", "log")
        panels.append(
            ("time of a token", _lengths(time, _styles(time), axis, ("y", "ms", ".3~r"), "context"))
        )
    missing = "" if panels else "Generation was not measured."
    return Figure("cache", title, caption, tuple(panels), _legend(_styles([*held, *time])), missing)


def far(found: Found) -> Figure:
    """Mamba's cost of a token up to a million tokens, beside the Transformer's."""
    title = "One more token, after up to a million"
    caption = (
        "Mamba has really read that much. The Transformer's cache is filled with random numbers, as far as "
        "memory allows."
    )
    styles = [STYLES["s6"], STYLES["attention"]]
    time = _series(of(found, "far", mixer="s6"), styles[0], "context", "median", 1000)
    time += _series(of(found, "step", mixer="attention", batch=1), styles[1], "context", "median", 1000)
    held = _series(of(found, "far", mixer="s6"), styles[0], "context", "state_bytes")
    held += _series(of(found, "step", mixer="attention", batch=1), styles[1], "context", "state_bytes")
    if not of(found, "far"):
        return Figure("far", title, caption, (), missing="Long contexts were not read.")
    panels = (
        ("time", _lengths(time, styles, Axis("ms per token", "log"), ("y", "ms", ".3~r"), "context")),
        ("state", _lengths(_sized(held), styles, Axis("state", "bytes"), ("s", "state", ""), "context")),
    )
    return Figure("far", title, caption, panels, _legend(styles))


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
    return Figure("kernels", title, caption, (("", spec),), _legend(styles))


def scan(found: Found) -> Figure:
    """Time, peak memory and bytes moved of the scan, both ways."""
    title = "The scan alone"
    caption = (
        "256 channels, 16 state numbers, batch of one, without gradients. Bytes moved are counted, "
        "not measured."
    )
    styles, time = _ways(found, "op", "s6", SCAN, "median", 1000, op="scan")
    if not time:
        return Figure("scan", title, caption, (), missing="The scan was not timed.")
    held = _sized(_ways(found, "op", "s6", SCAN, "bytes", op="scan")[1])
    moved = _sized(_ways(found, "op", "s6", SCAN, "moved", op="scan")[1])
    panels = [("time", _lengths(time, styles, Axis("ms", "log"), ("y", "ms", ".3~r"), "length"))]
    for name, points in (("peak memory", held), ("bytes moved", moved)):
        if points:
            panels.append((name, _lengths(points, styles, Axis(name, "bytes"), ("s", name, ""), "length")))
    return Figure("scan", title, caption, tuple(panels), _legend(styles))


def _per_second(found: Found, kind: str, x: str, batch: int) -> list[Point]:
    points: list[Point] = []
    for mixer in ORDER[:4]:
        for row in sorted(of(found, kind, mixer=mixer, batch=batch), key=lambda row: float(row[x])):
            if row.get("median"):
                tokens = batch * (row[x] if kind == "batch" else 1)
                points.append(Point(STYLES[mixer].name, row[x], tokens / row["median"]))
    return points


def _batches(found: Found, kind: str, x: str, key: str, title: str, caption: str) -> Figure:
    panels, shown = [], []
    for batch in sorted({row["batch"] for row in of(found, kind)}):
        points = _per_second(found, kind, x, batch)
        if points:
            shown += points
            axis = Axis("tokens per second", "log")
            name = "context" if x == "context" else "length"
            drawn = _lengths(points, _styles(points), axis, ("y", "tokens/s", ",.3~r"), name)
            panels.append((f"batch {batch}", drawn))
    return Figure(
        key,
        title,
        caption,
        tuple(panels),
        _legend(_styles(shown)),
        "" if panels else "Speed was not measured.",
    )


def generating(found: Found) -> Figure:
    """Generated tokens per second against context, by batch."""
    caption = "Equal parameters. A recurrent model does the same work at any context."
    return _batches(found, "step", "context", "generating", "Generation speed", caption)


def by_batch(found: Found) -> Figure:
    """Training tokens per second against length, by batch."""
    return _batches(found, "batch", "length", "by-batch", "Training speed by batch", "Equal parameters.")


def training(found: Found) -> Figure:
    """Training tokens per second against length at batch 1."""
    title, caption = "Training speed against length", "Tokens a second, batch of one, equal parameters."
    points: list[Point] = []
    for mixer in ORDER[:4]:
        for row in sorted(of(found, "cost", mixer=mixer, mode="train"), key=lambda row: float(row["length"])):
            points.append(Point(STYLES[mixer].name, row["length"], row["length"] / row["median"]))
    if not points:
        return Figure("training", title, caption, (), missing="Training was not timed.")
    axis = Axis("tokens per second", "log")
    spec = _lengths(points, _styles(points), axis, ("y", "tokens/s", ",.3~r"), "length")
    return Figure("training", title, caption, (("", spec),), _legend(_styles(points)))


def crossing(found: Found) -> Figure:
    """How many times as fast Mamba is as the Transformer, against length."""
    title = "Mamba beside the Transformer"
    caption = "Time of the Transformer over time of Mamba; above the line Mamba is the faster one."
    styles = family("s6", ["training", "generation"])
    points: list[Point] = []
    ways: tuple[tuple[str, str, dict[str, object]], ...] = (
        ("cost", "length", {"mode": "train"}),
        ("step", "context", {"batch": 1}),
    )
    for style, (kind, x, same) in zip(styles, ways, strict=True):
        mine, theirs = (
            {row[x]: row["median"] for row in of(found, kind, mixer=mixer, **same) if row.get("median")}
            for mixer in ("s6", "attention")
        )
        points += [Point(style.name, at, theirs[at] / mine[at]) for at in sorted(set(mine) & set(theirs))]
    if not points:
        return Figure("crossing", title, caption, (), missing="Speed was not measured.")
    tips = [("x", "tokens", ",d"), ("y", "times as fast", ".3~r")]
    axes = Axis("length or context (tokens)", "contexts"), Axis("times as fast", "log")
    spec = lines(Drawing(styles, points, *axes, tips, rules=[("equally fast", 1.0)], height=260))
    return Figure("crossing", title, caption, (("", spec),), _legend(styles))


def scores(task: str, key: str, title: str) -> Callable[[Found], Figure]:
    """Recorded scores of a task: against the length tested where there are several, else as bars."""

    def make(found: Found) -> Figure:
        rows = [row for row in of(found, "score", task=task) if isinstance(row.get("value"), int | float)]
        if not rows:
            return Figure(key, title, "", (), missing="")
        metric = str(rows[0].get("metric") or "")
        scale = 100.0 if "accuracy" in metric else 1.0
        axis = f"{metric} (%)" if scale > 1 else metric
        by: dict[str, dict[float, list[float]]] = {}
        for row in rows:
            at = float(row.get("at") or row.get("length") or 0)
            name = f"{row['mixer']}/{row.get('params') or ''}"
            by.setdefault(name, {}).setdefault(at, []).append(scale * float(row["value"]))
        source = dict.fromkeys(f"{row.get('machine', '')}, {row.get('date', '')}" for row in rows)
        caption = f"Mean over seeds. Recorded: {'; '.join(source)}."
        lengths = {at for values in by.values() for at in values}
        looks = _looks(by)
        if len(lengths) > 2:
            points = [
                Point(looks[name].name, at, math.fsum(each) / len(each))
                for name, values in by.items()
                for at, each in sorted(values.items())
            ]
            y = Axis(axis, "linear", (0.0, 100.0)) if scale > 1 else Axis(axis)
            tips = [("x", "length", ",d"), ("y", axis, ".4~r")]
            x = Axis("length tested (tokens)", "contexts")
            spec = lines(Drawing(list(looks.values()), points, x, y, tips, height=260))
            return Figure(key, title, caption, (("", spec),), _legend(list(looks.values())))
        entries = []
        for name, values in by.items():
            each = tuple(values[max(values)])
            entries.append((looks[name], math.fsum(each) / len(each), each))
        return Figure(key, title, caption, (("", bars(entries, axis, lambda v: f"{v:.4g}")),))

    return make


def _looks(by: Mapping[str, object]) -> dict[str, Style]:
    """A style for each architecture; where one has several sizes, the size stands in its name."""
    mixers = [name.partition("/")[0] for name in by]
    looks = {}
    for name, mixer in zip(by, mixers, strict=True):
        style = STYLES.get(mixer) or STYLES["gru"]._replace(name=mixer)
        params = name.partition("/")[2]
        if mixers.count(mixer) > 1 and params:
            turn = list(by).index(name) % len(_LOOKS)
            dash, shape = _LOOKS[turn]
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

# Claims that are seen in another one's picture.
SEEN_IN: Mapping[str, str] = {
    "lstm-cost": "rnn-cost",
    "mamba-linear": "rnn-cost",
    "loses-short": "speed-training",
    "quality-equal": "quality-twice",
}
