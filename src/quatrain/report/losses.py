"""Figures of how well models do: on the test part, while they train, by learning rate."""

from quatrain.report import charts
from quatrain.report._figure import Figure, Rule, legend_of, points_of, styles_of, without
from quatrain.report.charts import Axis, Drawing, Point, Spec, lines, thin
from quatrain.report.gather import Comparison, Row, Run
from quatrain.report.measure import NATS
from quatrain.report.rates import rate_grid


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
        found += points_of(thin(rows, most), name, x, "y" if judged else "loss", str(seed))
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
    styles = styles_of(comparison, [*valid, *train])
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
    missing = without(comparison, styles, "Training curve")
    return Figure(key, title, caption, (("", spec),), legend_of(styles), missing)


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
    styles = styles_of(comparison, points)
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
    missing = without(comparison, styles, "Curve")
    return Figure("loss-tokens", title, caption, (("", spec),), legend_of(styles), missing)


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
    styles = styles_of(comparison, points)
    tips = [("x", "learning rate", "~g"), ("y", tip, ".4f")]
    drawing = Drawing(styles, points, Axis("learning rate", "rates"), Axis(axis), tips)
    return Figure("by-rate", title, caption, (("", lines(drawing)),), legend_of(styles))
