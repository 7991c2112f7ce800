"""The pictures of cost and speed on the claims' page: rows to figures; without its rows one says so."""

from quatrain.report._claim_drawing import (
    ORDER,
    Found,
    by_length,
    exponents,
    family,
    four,
    legend_of,
    of,
    series,
    sized,
    styles_of,
    ways,
)
from quatrain.report.charts import Axis, Drawing, Point, lines
from quatrain.report.figures import Figure
from quatrain.report.styles import STYLES

ATTENTION = ("fused", "weights in memory")
SCAN = ("fused", "materialised")


def cost(found: Found) -> Figure:
    """Time and peak memory of a training step against length, all four."""
    title = "Training against length"
    caption = (
        "Time of forward and backward, and peak memory beyond the model, batch of one, equal parameters. n "
        "is the fitted exponent: 1 is linear, 2 quadratic."
    )
    time, held = (
        four(found, "cost", "length", "median", 1000, mode="train"),
        four(found, "memory", "length", "bytes", fused=True),
    )
    panels = []
    if time:
        axis = Axis("ms", "log")
        panels.append(
            ("time of a step", by_length(time, styles_of(time), axis, ("y", "ms", ".3~r"), "length"))
        )
    if held:
        axis = Axis("peak memory", "bytes")
        drawn = by_length(sized(held), styles_of(held), axis, ("s", "memory", ""), "length")
        panels.append(("peak memory", drawn))
    legend = legend_of(styles_of([*time, *held]), exponents(found, "train"))
    missing = "" if panels else "Cost against length was not measured."
    return Figure("cost", title, caption, tuple(panels), legend, missing)


def quadratic(found: Found) -> Figure:
    """Time of attention alone against length, both ways."""
    title, caption = (
        "Attention alone",
        "Four heads of 32, batch of one, without gradients; n is the fitted exponent.",
    )
    styles, points = ways(found, "op", "attention", ATTENTION, "median", 1000, op="attention")
    if not points:
        return Figure("quadratic", title, caption, (), missing="Attention was not timed.")
    fits = {
        row["fused"]: f"n = {row['value']:.2f}" for row in of(found, "exponent", of="op time", op="attention")
    }
    remarks = {style.name: fits.get(fused, "") for fused, style in zip((True, False), styles, strict=True)}
    spec = by_length(points, styles, Axis("ms", "log"), ("y", "ms", ".3~r"), "length")
    return Figure("quadratic", title, caption, (("", spec),), legend_of(styles, remarks))


def attention_memory(found: Found) -> Figure:
    """Peak memory of a Transformer's training step, both ways."""
    title = "Peak memory of a Transformer's training step"
    caption = "Beyond the model itself, batch of one, in a process of its own."
    styles, points = ways(found, "memory", "attention", ATTENTION, "bytes", mixer="attention")
    if not points:
        return Figure("attention-memory", title, caption, (), missing="Peak memory was not measured.")
    fits = {
        row["fused"]: f"n = {row['value']:.2f}"
        for row in of(found, "exponent", of="memory", mixer="attention")
    }
    remarks = {style.name: fits.get(fused, "") for fused, style in zip((True, False), styles, strict=True)}
    spec = by_length(sized(points), styles, Axis("peak memory", "bytes"), ("s", "memory", ""), "length")
    return Figure("attention-memory", title, caption, (("", spec),), legend_of(styles, remarks))


def cache(found: Found) -> Figure:
    """State bytes and time of a generated token against context, all four."""
    title = "While generating"
    caption = (
        "Bytes of the state of one sequence, and time of one more token, after a context of that length."
    )
    held = four(found, "step", "context", "state_bytes", batch=1)
    time = four(found, "step", "context", "median", 1000, batch=1)
    panels = []
    if held:
        axis = Axis("state", "bytes")
        panels.append(
            ("bytes held", by_length(sized(held), styles_of(held), axis, ("s", "state", ""), "context"))
        )
    if time:
        axis = Axis("ms per token", "log")
        panels.append(
            ("time of a token", by_length(time, styles_of(time), axis, ("y", "ms", ".3~r"), "context"))
        )
    missing = "" if panels else "Generation was not measured."
    return Figure("cache", title, caption, tuple(panels), legend_of(styles_of([*held, *time])), missing)


def far(found: Found) -> Figure:
    """Mamba's cost of a token up to a million tokens, beside the Transformer's."""
    title = "One more token, after up to a million"
    caption = (
        "Mamba has really read that much. The Transformer's cache is filled with random numbers, as far as "
        "memory allows."
    )
    styles = [STYLES["s6"], STYLES["attention"]]
    time = series(of(found, "far", mixer="s6"), styles[0], "context", "median", 1000)
    time += series(of(found, "step", mixer="attention", batch=1), styles[1], "context", "median", 1000)
    held = series(of(found, "far", mixer="s6"), styles[0], "context", "state_bytes")
    held += series(of(found, "step", mixer="attention", batch=1), styles[1], "context", "state_bytes")
    if not of(found, "far"):
        return Figure("far", title, caption, (), missing="Long contexts were not read.")
    panels = (
        ("time", by_length(time, styles, Axis("ms per token", "log"), ("y", "ms", ".3~r"), "context")),
        ("state", by_length(sized(held), styles, Axis("state", "bytes"), ("s", "state", ""), "context")),
    )
    return Figure("far", title, caption, panels, legend_of(styles))


def scan(found: Found) -> Figure:
    """Time, peak memory and bytes moved of the scan, both ways."""
    title = "The scan alone"
    caption = (
        "256 channels, 16 state numbers, batch of one, without gradients. Bytes moved are counted, "
        "not measured."
    )
    styles, time = ways(found, "op", "s6", SCAN, "median", 1000, op="scan")
    if not time:
        return Figure("scan", title, caption, (), missing="The scan was not timed.")
    held = sized(ways(found, "op", "s6", SCAN, "bytes", op="scan")[1])
    moved = sized(ways(found, "op", "s6", SCAN, "moved", op="scan")[1])
    panels = [("time", by_length(time, styles, Axis("ms", "log"), ("y", "ms", ".3~r"), "length"))]
    for name, points in (("peak memory", held), ("bytes moved", moved)):
        if points:
            panels.append((name, by_length(points, styles, Axis(name, "bytes"), ("s", name, ""), "length")))
    return Figure("scan", title, caption, tuple(panels), legend_of(styles))


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
            drawn = by_length(points, styles_of(points), axis, ("y", "tokens/s", ",.3~r"), name)
            panels.append((f"batch {batch}", drawn))
    return Figure(
        key,
        title,
        caption,
        tuple(panels),
        legend_of(styles_of(shown)),
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
    spec = by_length(points, styles_of(points), axis, ("y", "tokens/s", ",.3~r"), "length")
    return Figure("training", title, caption, (("", spec),), legend_of(styles_of(points)))


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
    return Figure("crossing", title, caption, (("", spec),), legend_of(styles))
