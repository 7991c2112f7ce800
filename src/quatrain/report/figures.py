"""Which figures the page has: each turns rows into one or two chart specs, a caption and, if need be, what is missing."""

from collections.abc import Callable
from typing import NamedTuple

from quatrain.report import charts, numbers
from quatrain.report.charts import Axis, Point, Spec, thin
from quatrain.report.gather import Comparison, Row, Run, list_of, number
from quatrain.report.styles import Style

_NATS = ("y", "nats/token", ".4f")


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


def test_bars(comparison: Comparison) -> Figure:
    """Test loss of every model and baseline, from zero."""
    lines = [entry for entry in comparison.entries if entry.status == "ok"] + list(comparison.baselines)
    key = (
        "test_bits_per_byte"
        if all(entry.values.get("test_bits_per_byte") for entry in lines)
        else "test_loss"
    )
    unit = "bits per byte" if key == "test_bits_per_byte" else "nats per token"
    found = [
        (entry.style, mean, entry.values[key]) for entry in lines if (mean := entry.mean(key)) is not None
    ]
    found.sort(key=lambda item: item[1])
    caption = f"Loss on the test part in {unit}; less is better. Grey bars are baselines that only count."
    title = "Test loss, models and trivial baselines"
    if not found:
        return Figure("test", title, caption, (), missing="No model or baseline has a test result yet.")
    return Figure("test", title, caption, (("", charts.bars(found, unit)),))


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
    """From just below the lowest loss to where every curve is past the first tenth of its way: the start is cut off."""
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
    spec = charts.lines(
        styles,
        valid or train,
        (Axis(axis), Axis("loss (nats/token)", domain=(low, high))),
        [("x", axis, ",.4~g" if x == "seconds" else ".3~s"), _NATS],
        faint=train if valid else None,
        rules=rules[:2],
        height=300,
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
        "Validation loss (points) and training loss (thin lines) at the learning rate that was chosen. All models saw "
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
        "The same curves over the time they took. Read it with care between the end points: each learning-rate "
        "schedule runs to that model's own end, so a slow model is not at its best half way.",
    )


def _cost(
    comparison: Comparison, key: str, y: str, axis: Axis, title: str, caption: str, tip: tuple[str, str]
) -> Figure:
    values: list[Point] = []
    for mixer in comparison.mixers:
        rows = sorted(comparison.of("step_cost", mixer), key=lambda row: number(row, "context") or 0.0)
        points = [v for v in _points(rows, comparison.style(mixer).name, "context", y) if v.y > 0]
        values += [v._replace(text=numbers.size(v.y)) for v in points]
    if not values:
        return Figure(key, title, caption, (), missing="Generation was not timed.")
    ys = [v.y for v in values]
    if axis.kind == "auto":
        axis = axis._replace(kind="log" if max(ys) > 12 * min(ys) else "linear", zero=max(ys) <= 12 * min(ys))
    tips = (
        [("x", "context", ",d"), ("s", tip[0], "")]
        if y == "state_bytes"
        else [("x", "context", ",d"), ("y", *tip)]
    )
    styles = _names(comparison, values)
    spec = charts.lines(styles, values, (Axis("context (tokens before the new one)", "contexts"), axis), tips)
    return Figure(
        key, title, caption, (("", spec),), _legend(styles), _without(comparison, styles, "Generation")
    )


def latency(comparison: Comparison) -> Figure:
    """Milliseconds per generated token against context."""
    return _cost(
        comparison,
        "latency",
        "ms_per_token",
        Axis("ms per token", "auto"),
        "Time of one generated token",
        "Batch of one, after a context of that length. A recurrent model does the same work at any length.",
        ("ms per token", ".3~g"),
    )


def state(comparison: Comparison) -> Figure:
    """State bytes against context."""
    return _cost(
        comparison,
        "state",
        "state_bytes",
        Axis("state per sequence", "bytes"),
        "Memory kept while generating",
        "Live bytes of one sequence's state, weights not counted: what a server holds per open conversation.",
        ("state", ""),
    )


def prefill(comparison: Comparison) -> Figure:
    """Seconds of reading a prompt against its length, with the fitted exponent in the legend."""
    key, title = "prefill", "Time to read a prompt"
    caption = (
        "Batch of one. The exponent n is fitted to time ~ length^n over the longer prompts: 1 means twice the text "
        "takes twice the time, 2 means four times."
    )
    values: list[Point] = []
    legend = []
    for mixer in comparison.mixers:
        style = comparison.style(mixer)
        rows = sorted(comparison.of("prefill", mixer), key=lambda row: number(row, "length") or 0.0)
        points = [v for v in _points(rows, style.name, "length", "seconds") if v.y > 0]
        fits = [number(row, "exponent") for row in comparison.of("prefill_fit", mixer)]
        if points:
            values += [v._replace(text=numbers.duration(v.y)) for v in points]
            legend.append(Legend(style, f"n = {fits[-1]:.2f}" if fits and fits[-1] is not None else "no fit"))
    if not values:
        return Figure(key, title, caption, (), missing="Reading a prompt was not timed.")
    styles = _names(comparison, values)
    axes = (Axis("prompt length (tokens)", "contexts"), Axis("seconds", "log"))
    spec = charts.lines(styles, values, axes, [("x", "tokens", ",d"), ("s", "time", "")])
    return Figure(key, title, caption, (("", spec),), tuple(legend), _without(comparison, styles, "Prefill"))


def gradient(comparison: Comparison) -> Figure:
    """Norm of d loss_T / d x_(T-k) against k, after training and, where recorded, at initialisation."""
    key, title = "gradient", "How far back the last token's loss reaches"
    caption = (
        "Norm of the gradient of the last token's loss with respect to the input k tokens earlier, on a log scale. A "
        "line that falls straight forgets exponentially; a flat one still listens to the far past. It tells what "
        "can be learnt from k tokens ago, not what was."
    )
    parts: dict[bool, list[Point]] = {True: [], False: []}
    for mixer in comparison.mixers:
        rows = sorted(comparison.of("gradient", mixer), key=lambda row: number(row, "k") or 0.0)
        for trained in (True, False):
            mine = [row for row in rows if row.get("trained", True) is trained]
            points = [v for v in _points(mine, comparison.style(mixer).name, "k", "norm") if v.y > 0]
            parts[trained] += thin(points, 64)
    everything = [*parts[True], *parts[False]]
    if not everything:
        return Figure(key, title, caption, (), missing="The gradient norms were not measured.")
    ys = [v.y for v in everything]
    domain = (max(min(ys) * 0.7, max(ys) * 1e-12), max(ys) * 1.5)
    names = {True: "after training", False: "at initialisation"}
    panels = tuple(
        (
            names[trained],
            charts.lines(
                _names(comparison, values),
                values,
                (Axis("k (tokens back)"), Axis("gradient norm", "scientific", domain)),
                [("x", "k", ",d"), ("y", "norm", ".2e")],
                height=280,
            ),
        )
        for trained, values in parts.items()
        if values
    )
    styles = _names(comparison, everything)
    return Figure(key, title, caption, panels, _legend(styles), _without(comparison, styles, "Gradients"))


FIGURES: tuple[Callable[[Comparison], Figure], ...] = (
    loss_by_tokens,
    loss_by_time,
    latency,
    state,
    prefill,
    gradient,
)


def tokens_seen(comparison: Comparison) -> float | None:
    """Tokens that each finished model was trained on."""
    seen = [number(row, "tokens") for row in comparison.rows.get("result", [])]
    known = [value for value in seen if value is not None]
    return max(known) if known else number(comparison.about, "tokens_per_model")


def seeds(comparison: Comparison) -> int:
    """How many seeds were asked for."""
    return max(1, len(list_of(comparison.about, "seeds")))
