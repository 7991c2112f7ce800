"""The figures of the page: each turns rows into chart specs, a caption and, if need be, what is missing."""

from collections.abc import Callable
from typing import NamedTuple

from quatrain.report import charts, numbers
from quatrain.report.charts import Axis, Drawing, Point, Spec, lines, thin
from quatrain.report.gather import Comparison, Row, Run, number
from quatrain.report.measure import NATS
from quatrain.report.rates import rate_grid
from quatrain.report.styles import Style

Tip = tuple[str, str, str]  # field, title, format
Rule = tuple[str, float]  # a baseline and where it lies


class Legend(NamedTuple):
    """A line of a legend: the look and a remark behind the name (a fitted exponent)."""

    style: Style
    remark: str = ""


class Figure(NamedTuple):
    """One figure: ``panels`` are (subtitle, spec); without any, ``missing`` says what was not measured."""

    key: str
    title: str
    caption: str
    panels: tuple[tuple[str, Spec], ...]
    legend: tuple[Legend, ...] = ()
    missing: str = ""


def _points(rows: list[Row], name: str, x: str, y: str, run: str = "") -> list[Point]:
    """The rows that have both numbers."""
    found: list[Point] = []
    for row in rows:
        at, value = number(row, x), number(row, y)
        if at is not None and value is not None:
            found.append(Point(name, at, value, run))
    return found


def _names(comparison: Comparison, values: list[Point]) -> list[Style]:
    seen = {value.name for value in values}
    return [style for style in (comparison.style(mixer) for mixer in comparison.mixers) if style.name in seen]


def _legend(styles: list[Style]) -> tuple[Legend, ...]:
    return tuple(Legend(style) for style in styles)


def _without(comparison: Comparison, styles: list[Style], what: str) -> str:
    """A sentence naming the models that have no values in a figure."""
    absent = [
        comparison.style(mixer).name for mixer in comparison.mixers if comparison.style(mixer) not in styles
    ]
    return f"{what} of {numbers.listed(absent)} not measured." if absent else ""


def final_losses(comparison: Comparison) -> Figure:
    """What decides, of models and baselines, from zero; the uniform guess only where there is no other."""
    measure = comparison.measure
    unit, main = _bars(comparison)
    title = f"{measure.title} on the test part, and trivial baselines"
    caption = f"{measure.title} on the test part; {measure.better}. Grey bars are trivial baselines."
    if measure == NATS:
        title = "Test loss, models and trivial baselines"
        caption = f"Loss on the test part in {unit}; less is better. Grey bars are baselines that only count."
    if main is None:
        return Figure("test", title, caption, (), missing="No model or baseline has a test result yet.")
    _, timed = _bars(comparison.again()) if comparison.timed else ("", None)
    if timed is None:
        return Figure("test", title, caption, (("", main),))
    equal = f"equal {comparison.words.step}s"
    return Figure("test", title, caption, ((equal, main), ("equal training time", timed)))


def _bars(comparison: Comparison) -> tuple[str, Spec | None]:
    """The unit, and bars of the models that finished and the baselines; None where there are none."""
    baselines = [base for base in comparison.baselines if base.key != "uniform"] or list(comparison.baselines)
    shown = [entry for entry in comparison.entries if entry.status == "ok"] + baselines
    measure, show = comparison.measure, comparison.measure.show
    key, unit = measure.key, measure.says
    if measure == NATS and shown and all(entry.values.get("test_bits_per_byte") for entry in shown):
        key, unit = "test_bits_per_byte", shown[0].texts.get("bits", "bits per byte")
    found = [
        (entry.style, mean, entry.values[key]) for entry in shown if (mean := entry.mean(key)) is not None
    ]
    found.sort(key=lambda item: measure.merit(item[1]))
    if not found:
        return unit, None
    scale = 100.0 if measure.percent else 1.0
    drawn = [(style, scale * mean, tuple(scale * one for one in each)) for style, mean, each in found]
    axis = f"{unit} (%)" if measure.percent else unit
    return unit, charts.bars(drawn, axis, lambda value: show(value / scale))


def _curves(comparison: Comparison, kind: str, x: str, judged: bool = False) -> list[Point]:
    """The chosen runs of every mixer, thinned so that all of them together stay within the chart's budget.

    The loss, or what the measure that decides was at that step.
    """
    runs: dict[Run, list[Row]] = {}
    for mixer in comparison.mixers:
        runs |= comparison.chosen(mixer, kind)
    most = max(20, charts.POINTS // max(1, 2 * len(runs)))
    if kind == "valid":
        most = min(most, 40)
    found: list[Point] = []
    for (mixer, _, seed), rows in runs.items():
        if judged:
            scale = 100.0 if comparison.measure.percent else 1.0
            rows = [{**row, "y": scale * y} for row in rows if (y := comparison.judged(row)) is not None]
        name = comparison.style(mixer).name
        found += _points(thin(rows, most), name, x, "y" if judged else "loss", str(seed))
    return found


def _loss_range(valid: list[Point], train: list[Point]) -> tuple[float, float]:
    """From the lowest loss to the highest past the first tenth of each curve: the starts are cut off."""
    values = valid or train
    low = min(v.y for v in [*valid, *train])
    last: dict[tuple[str, str], float] = {}
    for v in values:
        last[v.name, v.run] = max(last.get((v.name, v.run), 0.0), v.x)
    late = [v.y for v in values if v.x >= 0.1 * last[v.name, v.run]]
    high = max(late)
    pad = 0.06 * max(high - low, 1e-3)
    return low - pad, high + pad


def _loss(comparison: Comparison, key: str, x: str, title: str, axis: str, caption: str) -> Figure:
    valid, train = _curves(comparison, "valid", x), _curves(comparison, "train", x)
    if not valid and not train:
        return Figure(key, title, caption, (), missing="No training curve was recorded.")
    scale = 60.0 if x == "seconds" and max(v.x for v in [*valid, *train]) > 180 else 1.0
    if scale != 1.0:
        axis = axis.replace("seconds", "minutes")
        valid, train = ([v._replace(x=v.x / scale) for v in part] for part in (valid, train))
    low, high = _loss_range(valid, train)
    rules = _rules(comparison, "valid_loss", low, high)
    styles = _names(comparison, [*valid, *train])
    spec = lines(
        Drawing(
            styles,
            valid or train,
            Axis(axis),
            Axis(f"loss ({_unit(comparison)})", domain=(low, high)),
            [("x", axis, ",.3~r" if x == "seconds" else ".3~s"), ("y", _unit(comparison), ".4f")],
            faint=train if valid else None,
            rules=rules[:2],
            height=300,
        )
    )
    missing = _without(comparison, styles, "Training curve")
    return Figure(key, title, caption, (("", spec),), _legend(styles), missing)


def _unit(comparison: Comparison) -> str:
    return comparison.words.unit.replace(" per ", "/")


def _rules(comparison: Comparison, key: str, low: float, high: float, scale: float = 1.0) -> list[Rule]:
    """The baselines that lie within an axis."""
    found = [(base.style.name, base.mean(key)) for base in comparison.baselines]
    return [(name, scale * at) for name, at in found if at is not None and low < scale * at < high]


def loss_by_tokens(comparison: Comparison) -> Figure:
    """Loss against tokens seen; of another task than lm the metric that decides."""
    if comparison.measure != NATS:
        return _metric(comparison)
    return _loss(
        comparison,
        "loss-tokens",
        "tokens",
        "Loss against tokens read",
        "tokens",
        "Validation loss (points) and training loss (thin lines) at the learning rate that was chosen. All "
        "models saw "
        "the same tokens in the same order. The first tenth is cut off at the top.",
    )


def _metric(comparison: Comparison) -> Figure:
    """The metric that decides on the validation part, against steps of input read."""
    measure = comparison.measure
    title = f"{measure.title} against steps read"
    caption = (
        f"{measure.says[:1].upper()}{measure.says[1:]} on the validation part at the learning rate that was "
        f"chosen; {measure.better}. All models saw the same sequences in the same order; the best point of "
        f"each is what was tested."
    )
    points = _curves(comparison, "valid", "tokens", judged=True)
    if not points:
        return Figure(
            "loss-tokens", title, caption, (), missing="No look at the validation part was recorded."
        )
    scale = 100.0 if measure.percent else 1.0
    low, high = min(point.y for point in points), max(point.y for point in points)
    if measure.lower:
        low, high = _loss_range(points, [])
    pad = 0.06 * max(high - low, 1e-3 * scale)
    low, high = (low, high) if measure.lower else (max(0.0, low - pad), high + pad)
    styles = _names(comparison, points)
    axis = f"{measure.title} (%)" if measure.percent else measure.title
    spec = lines(
        Drawing(
            styles,
            points,
            Axis("steps of input"),
            Axis(axis, domain=(low, high)),
            [("x", "steps", ".3~s"), ("y", axis, ".4~r")],
            rules=_rules(comparison, measure.valid, low, high, scale)[:2],
            height=300,
        )
    )
    missing = _without(comparison, styles, "Curve")
    return Figure("loss-tokens", title, caption, (("", spec),), _legend(styles), missing)


def loss_by_time(comparison: Comparison) -> Figure:
    """Loss against seconds of training."""
    same = "The same curves over the time they took."
    if comparison.measure != NATS:
        same = "Validation loss (points) and training loss (thin lines) over the time they took."
    return _loss(
        comparison,
        "loss-time",
        "seconds",
        "Loss against wall time",
        "seconds of training",
        f"{same} Read it with care between the end points: each "
        "learning-rate "
        "schedule runs to that model's own end, so a slow model is not at its best half way.",
    )


def equal_time(comparison: Comparison) -> Figure | None:
    """Loss against seconds of the models trained anew for the same time; None where none were."""
    if not comparison.timed:
        return None
    return _loss(
        comparison.again(),
        "equal-time",
        "seconds",
        "Loss against wall time, trained for equal time",
        "seconds of training",
        "Trained anew, each with a schedule that ends when the time is over, at the learning rate that was "
        "chosen at equal tokens. A faster model reads more tokens.",
    )


def _positive(points: list[Point]) -> list[Point]:
    """The points that a doubly logarithmic chart can show."""
    return [point for point in points if point.x > 0 and point.y > 0]


def _step_costs(comparison: Comparison, field: str) -> list[Point]:
    found: list[Point] = []
    for mixer in comparison.mixers:
        rows = sorted(comparison.of("step_cost", mixer), key=lambda row: number(row, "context") or 0.0)
        found += _positive(_points(rows, comparison.style(mixer).name, "context", field))
    return found


def _against_context(
    comparison: Comparison, figure: Figure, points: list[Point], y: Axis, tip: Tip
) -> Figure:
    if not points:
        return figure._replace(missing="Generation was not measured.")
    styles = _names(comparison, points)
    spec = lines(
        Drawing(
            styles,
            points,
            Axis(f"context ({comparison.words.step}s)", "contexts"),
            y,
            [("x", "context", ",d"), tip],
        )
    )
    missing = _without(comparison, styles, "Generation")
    return figure._replace(panels=(("", spec),), legend=_legend(styles), missing=missing)


def latency(comparison: Comparison) -> Figure:
    """Milliseconds per generated token against context; the scale is logarithmic where times differ much."""
    caption = (
        "Batch of one, after a context of that length. A recurrent model does the same work at any length."
    )
    step = comparison.words.step
    title = "Time of one generated token" if step == "token" else "Time of one more step of a stream"
    figure = Figure("latency", title, caption, ())
    points = _step_costs(comparison, "ms_per_token")
    times = [point.y for point in points] or [1.0]
    wide = max(times) > 12 * min(times)
    axis = Axis(f"ms per {step}", "log") if wide else Axis(f"ms per {step}", zero=True)
    return _against_context(comparison, figure, points, axis, ("y", f"ms per {step}", ".3~r"))


def state(comparison: Comparison) -> Figure:
    """State bytes against context, both logarithmic."""
    caption = "Live bytes of one sequence's state, weights not counted: what a server holds per open " + (
        "conversation." if comparison.words.step == "token" else "stream."
    )
    title = "Memory kept while generating" if comparison.words.step == "token" else "Memory kept by a stream"
    figure = Figure("state", title, caption, ())
    points = [point._replace(text=numbers.size(point.y)) for point in _step_costs(comparison, "state_bytes")]
    return _against_context(
        comparison, figure, points, Axis("state per sequence", "bytes"), ("s", "state", "")
    )


def prefill(comparison: Comparison) -> Figure:
    """Seconds of reading a prompt against its length, with the fitted exponent in the legend."""
    step = comparison.words.step
    key, title = "prefill", "Time to read a prompt" if step == "token" else "Time to read a sequence"
    caption = (
        "Batch of one. The exponent n is fitted to the longer ones, time = constant x length^n: at n = "
        "1 twice the length "
        "takes twice the time, at n = 2 four times."
    )
    points: list[Point] = []
    legend = []
    for mixer in comparison.mixers:
        style = comparison.style(mixer)
        rows = sorted(comparison.of("prefill", mixer), key=lambda row: number(row, "length") or 0.0)
        mine = _positive(_points(rows, style.name, "length", "seconds"))
        fits = [number(row, "exponent") for row in comparison.of("prefill_fit", mixer)]
        if mine:
            points += [point._replace(text=numbers.duration(point.y)) for point in mine]
            legend.append(Legend(style, f"n = {fits[-1]:.2f}" if fits and fits[-1] is not None else "no fit"))
    if not points:
        return Figure(key, title, caption, (), missing="Reading a prompt was not timed.")
    styles = _names(comparison, points)
    tips = [("x", f"{step}s", ",d"), ("s", "time", "")]
    what = "prompt length" if step == "token" else "length"
    spec = lines(Drawing(styles, points, Axis(f"{what} ({step}s)", "contexts"), Axis("seconds", "log"), tips))
    return Figure(key, title, caption, (("", spec),), tuple(legend), _without(comparison, styles, "Prefill"))


def _reach(comparison: Comparison, trained: bool) -> list[Point]:
    found: list[Point] = []
    for mixer in comparison.mixers:
        rows = [row for row in comparison.of("gradient", mixer) if row.get("trained", True) is trained]
        rows.sort(key=lambda row: number(row, "k") or 0.0)
        points = _points(rows, comparison.style(mixer).name, "k", "norm")
        found += thin([point for point in points if point.y > 0], 128)
    return found


def _spaced(points: list[Point]) -> list[Point]:
    """About sixteen marks per line at even distances, for lines with dense points."""
    step = max((point.x for point in points), default=0.0) / 16
    found: list[Point] = []
    for point in points:
        if not found or found[-1].name != point.name or point.x - found[-1].x >= step:
            found.append(point)
    return found


def gradient(comparison: Comparison) -> Figure:
    """Norm of d loss_T / d x_(T-k) against k, after training and, where recorded, at initialisation."""
    whole = comparison.task in ("classify", "transcribe")
    key = "gradient"
    last = "loss" if whole else f"last {comparison.words.step}'s loss"
    title = f"How far back the {last} reaches"
    caption = (
        f"{comparison.words.reach} It tells what can be learnt from k {comparison.words.step}s ago, not what "
        "was. A line ends where the norm is 0 or below 1e-12 of the largest."
    )
    parts = {"after training": _reach(comparison, True), "at initialisation": _reach(comparison, False)}
    everything = [point for points in parts.values() for point in points]
    if not everything:
        return Figure(key, title, caption, (), missing="The gradient norms were not measured.")
    norms = [point.y for point in everything]
    y = Axis("gradient norm", "scientific", (max(min(norms), max(norms) * 1e-12), max(norms)))
    tips = [("x", "k", ",d"), ("y", "norm", ".2e")]
    panels = []
    for subtitle, points in parts.items():
        if points:
            drawing = Drawing(
                _names(comparison, points),
                points,
                Axis(f"k ({comparison.words.step}s back)"),
                y,
                tips,
                _spaced(points),
            )
            panels.append((subtitle, lines(drawing)))
    styles = _names(comparison, everything)
    missing = _without(comparison, styles, "Gradients")
    return Figure(key, title, caption, tuple(panels), _legend(styles), missing)


def rates(comparison: Comparison) -> Figure:
    """What decides on the validation part against learning rate, at the step where rates were compared."""
    measure = comparison.measure
    if measure == NATS:
        title, axis, tip = "Validation loss by learning rate", "loss (nats/token)", "nats/token"
    else:
        axis = tip = f"{measure.title} (%)" if measure.percent else measure.title
        title = f"{measure.title} on validation by learning rate"
    caption = "A flat line means that the model does not mind the rate."
    scale = 100.0 if measure.percent else 1.0
    points: list[Point] = []
    for line in rate_grid(comparison):
        points += [
            Point(line.style.name, rate, scale * value) for rate, value in line.losses.items() if rate > 0
        ]
    if len({point.x for point in points}) < 2:
        return Figure("by-rate", title, caption, (), missing="Fewer than two learning rates have a loss.")
    styles = _names(comparison, points)
    tips = [("x", "learning rate", "~g"), ("y", tip, ".4f")]
    drawing = Drawing(styles, points, Axis("learning rate", "rates"), Axis(axis), tips)
    return Figure("by-rate", title, caption, (("", lines(drawing)),), _legend(styles))


FIGURES: tuple[Callable[[Comparison], Figure], ...] = (
    loss_by_tokens,
    loss_by_time,
    latency,
    state,
    prefill,
    gradient,
)
