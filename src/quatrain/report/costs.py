"""Figures of what models cost and how far back they reach."""

from quatrain.report import numbers
from quatrain.report._figure import Figure, Legend, Tip, legend_of, points_of, styles_of, without
from quatrain.report.charts import Axis, Drawing, Point, lines, thin
from quatrain.report.gather import Comparison, number


def _positive(points: list[Point]) -> list[Point]:
    """The points that a doubly logarithmic chart can show."""
    return [point for point in points if point.x > 0 and point.y > 0]


def _step_costs(comparison: Comparison, field: str) -> list[Point]:
    found: list[Point] = []
    for mixer in comparison.mixers:
        rows = sorted(comparison.of("step_cost", mixer), key=lambda row: number(row, "context") or 0.0)
        found += _positive(points_of(rows, comparison.style(mixer).name, "context", field))
    return found


def _against_context(
    comparison: Comparison, figure: Figure, points: list[Point], y: Axis, tip: Tip
) -> Figure:
    if not points:
        return figure._replace(missing="Generation was not measured.")
    styles = styles_of(comparison, points)
    spec = lines(
        Drawing(
            styles,
            points,
            Axis(f"context ({comparison.words.step}s)", "contexts"),
            y,
            [("x", "context", ",d"), tip],
        )
    )
    missing = without(comparison, styles, "Generation")
    return figure._replace(panels=(("", spec),), legend=legend_of(styles), missing=missing)


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
        mine = _positive(points_of(rows, style.name, "length", "seconds"))
        fits = [number(row, "exponent") for row in comparison.of("prefill_fit", mixer)]
        if mine:
            points += [point._replace(text=numbers.duration(point.y)) for point in mine]
            legend.append(Legend(style, f"n = {fits[-1]:.2f}" if fits and fits[-1] is not None else "no fit"))
    if not points:
        return Figure(key, title, caption, (), missing="Reading a prompt was not timed.")
    styles = styles_of(comparison, points)
    tips = [("x", f"{step}s", ",d"), ("s", "time", "")]
    what = "prompt length" if step == "token" else "length"
    spec = lines(Drawing(styles, points, Axis(f"{what} ({step}s)", "contexts"), Axis("seconds", "log"), tips))
    return Figure(key, title, caption, (("", spec),), tuple(legend), without(comparison, styles, "Prefill"))


def _reach(comparison: Comparison, trained: bool) -> list[Point]:
    found: list[Point] = []
    for mixer in comparison.mixers:
        rows = [row for row in comparison.of("gradient", mixer) if row.get("trained", True) is trained]
        rows.sort(key=lambda row: number(row, "k") or 0.0)
        points = points_of(rows, comparison.style(mixer).name, "k", "norm")
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
                styles_of(comparison, points),
                points,
                Axis(f"k ({comparison.words.step}s back)"),
                y,
                tips,
                _spaced(points),
            )
            panels.append((subtitle, lines(drawing)))
    styles = styles_of(comparison, everything)
    missing = without(comparison, styles, "Gradients")
    return Figure(key, title, caption, tuple(panels), legend_of(styles), missing)
