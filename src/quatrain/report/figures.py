"""The figures of the page: each turns rows into chart specs, a caption and, if need be, what is missing."""

from collections.abc import Callable
from typing import NamedTuple

from quatrain.report import charts, numbers
from quatrain.report.charts import Axis, Drawing, Point, Spec, lines, thin
from quatrain.report.gather import Comparison, Row, Run, number
from quatrain.report.rates import rate_grid
from quatrain.report.styles import Style

Tip = tuple[str, str, str]  # field, title, format


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
    """Test loss of every model and baseline, from zero; the uniform guess only where there is no other."""
    title = "Test loss, models and trivial baselines"
    unit, main = _bars(comparison)
    caption = f"Loss on the test part in {unit}; less is better. Grey bars are baselines that only count."
    if main is None:
        return Figure("test", title, caption, (), missing="No model or baseline has a test result yet.")
    _, timed = _bars(comparison.again()) if comparison.timed else ("", None)
    if timed is None:
        return Figure("test", title, caption, (("", main),))
    return Figure("test", title, caption, (("equal tokens", main), ("equal training time", timed)))


def _bars(comparison: Comparison) -> tuple[str, Spec | None]:
    """The unit, and bars of the models that finished and the baselines; None where there are none."""
    baselines = [base for base in comparison.baselines if base.key != "uniform"] or list(comparison.baselines)
    shown = [entry for entry in comparison.entries if entry.status == "ok"] + baselines
    key = (
        "test_bits_per_byte"
        if all(entry.values.get("test_bits_per_byte") for entry in shown)
        else "test_loss"
    )
    unit = "bits per byte" if key == "test_bits_per_byte" else "nats per token"
    found = [
        (entry.style, mean, entry.values[key]) for entry in shown if (mean := entry.mean(key)) is not None
    ]
    found.sort(key=lambda item: item[1])
    return unit, charts.bars(found, unit) if found else None


def _curves(comparison: Comparison, kind: str, x: str) -> list[Point]:
    """The chosen runs of every mixer, thinned so that all of them together stay within the chart's budget."""
    runs: dict[Run, list[Row]] = {}
    for mixer in comparison.mixers:
        runs |= comparison.chosen(mixer, kind)
    most = max(20, charts.POINTS // max(1, 2 * len(runs)))
    if kind == "valid":
        most = min(most, 40)
    found: list[Point] = []
    for (mixer, _, seed), rows in runs.items():
        found += _points(thin(rows, most), comparison.style(mixer).name, x, "loss", str(seed))
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
    rules = []
    for base in comparison.baselines:
        at = base.mean("valid_loss")
        if at is not None and low < at < high:
            rules.append((base.style.name, at))
    styles = _names(comparison, [*valid, *train])
    spec = lines(
        Drawing(
            styles,
            valid or train,
            Axis(axis),
            Axis("loss (nats/token)", domain=(low, high)),
            [("x", axis, ",.3~r" if x == "seconds" else ".3~s"), ("y", "nats/token", ".4f")],
            faint=train if valid else None,
            rules=rules[:2],
            height=300,
        )
    )
    missing = _without(comparison, styles, "Training curve")
    return Figure(key, title, caption, (("", spec),), _legend(styles), missing)


def loss_by_tokens(comparison: Comparison) -> Figure:
    """Loss against tokens seen."""
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


def loss_by_time(comparison: Comparison) -> Figure:
    """Loss against seconds of training."""
    return _loss(
        comparison,
        "loss-time",
        "seconds",
        "Loss against wall time",
        "seconds of training",
        "The same curves over the time they took. Read it with care between the end points: each "
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
        Drawing(styles, points, Axis("context (tokens)", "contexts"), y, [("x", "context", ",d"), tip])
    )
    missing = _without(comparison, styles, "Generation")
    return figure._replace(panels=(("", spec),), legend=_legend(styles), missing=missing)


def latency(comparison: Comparison) -> Figure:
    """Milliseconds per generated token against context; the scale is logarithmic where times differ much."""
    caption = (
        "Batch of one, after a context of that length. A recurrent model does the same work at any length."
    )
    figure = Figure("latency", "Time of one generated token", caption, ())
    points = _step_costs(comparison, "ms_per_token")
    times = [point.y for point in points] or [1.0]
    wide = max(times) > 12 * min(times)
    axis = Axis("ms per token", "log") if wide else Axis("ms per token", zero=True)
    return _against_context(comparison, figure, points, axis, ("y", "ms per token", ".3~r"))


def state(comparison: Comparison) -> Figure:
    """State bytes against context, both logarithmic."""
    caption = (
        "Live bytes of one sequence's state, weights not counted: what a server holds per open conversation."
    )
    figure = Figure("state", "Memory kept while generating", caption, ())
    points = [point._replace(text=numbers.size(point.y)) for point in _step_costs(comparison, "state_bytes")]
    return _against_context(
        comparison, figure, points, Axis("state per sequence", "bytes"), ("s", "state", "")
    )


def prefill(comparison: Comparison) -> Figure:
    """Seconds of reading a prompt against its length, with the fitted exponent in the legend."""
    key, title = "prefill", "Time to read a prompt"
    caption = (
        "Batch of one. The exponent n is fitted to the longer prompts, time = constant x length^n: at n = "
        "1 twice the text "
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
    tips = [("x", "tokens", ",d"), ("s", "time", "")]
    spec = lines(
        Drawing(styles, points, Axis("prompt length (tokens)", "contexts"), Axis("seconds", "log"), tips)
    )
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
    key, title = "gradient", "How far back the last token's loss reaches"
    caption = (
        "Norm of the gradient of the last token's loss with respect to the input k tokens earlier, on a "
        "log scale. A "
        "line that falls straight forgets exponentially; a flat one still listens to the far past. It "
        "tells what "
        "can be learnt from k tokens ago, not what was. A line ends where the norm is 0 or "
        "below 1e-12 of the largest."
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
                _names(comparison, points), points, Axis("k (tokens back)"), y, tips, _spaced(points)
            )
            panels.append((subtitle, lines(drawing)))
    styles = _names(comparison, everything)
    missing = _without(comparison, styles, "Gradients")
    return Figure(key, title, caption, tuple(panels), _legend(styles), missing)


def rates(comparison: Comparison) -> Figure:
    """Validation loss against learning rate, at the step where the rates were compared."""
    title, caption = (
        "Validation loss by learning rate",
        "A flat line means that the model does not mind the rate.",
    )
    points: list[Point] = []
    for line in rate_grid(comparison):
        points += [Point(line.style.name, rate, value) for rate, value in line.losses.items() if rate > 0]
    if len({point.x for point in points}) < 2:
        return Figure("by-rate", title, caption, (), missing="Fewer than two learning rates have a loss.")
    styles = _names(comparison, points)
    tips = [("x", "learning rate", "~g"), ("y", "nats/token", ".4f")]
    drawing = Drawing(styles, points, Axis("learning rate", "rates"), Axis("loss (nats/token)"), tips)
    return Figure("by-rate", title, caption, (("", lines(drawing)),), _legend(styles))


FIGURES: tuple[Callable[[Comparison], Figure], ...] = (
    loss_by_tokens,
    loss_by_time,
    latency,
    state,
    prefill,
    gradient,
)
