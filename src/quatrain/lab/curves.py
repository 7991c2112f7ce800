"""The curves of a training run, thinned for a page."""

from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from quatrain import records
from quatrain.errors import DataError

Row = dict[str, Any]
POINTS = 200  # of a training curve over the whole run


def rows(path: Path, same: Row, first: int, last: int, steps: int) -> list[tuple[str, Row]]:
    """Rows "train" and "valid" of the steps ``first + 1 .. last`` of a run of ``steps`` steps.

    A training point is the mean loss of the steps since the point before it; ``same`` is put into every row.
    """
    stride = -(-steps // POINTS)
    found: list[tuple[str, Row]] = []
    losses: list[float] = []
    seconds = 0.0
    for row in records.read(path):
        if row["kind"] not in ("step", "eval") or not first < row["step"] <= last:
            continue
        if row["kind"] == "eval":
            point = {"step": row["step"], "tokens": row["tokens"], "seconds": seconds, "loss": loss_of(row)}
            metrics = {"metrics": row["metrics"]} if row.get("metrics") else {}
            found.append(("valid", {**same, **point, **metrics}))
            continue
        losses.append(row["loss"])
        seconds = row["seconds"]
        if row["step"] % stride == 0 or row["step"] == last:
            point = {"step": row["step"], "tokens": row["tokens"], "seconds": seconds, "loss": fmean(losses)}
            found.append(("train", {**same, **point}))
            losses.clear()
    return found


def seconds(path: Path) -> float:
    """Seconds of all training steps of a run, over its sessions."""
    return max((row["seconds"] for row in records.read(path) if row["kind"] == "step"), default=0.0)


def loss_of(look: Row) -> Any:
    """The loss of a look at the validation part; None where it was not finite."""
    return look["nats"] if "nats" in look else look["loss"]


def last_look(path: Path, last: int) -> Row:
    """The last look at the validation part up to step ``last``. Raises DataError where there is none."""
    looks = [row for row in records.read(path) if row["kind"] == "eval" and row["step"] <= last]
    if not looks:
        raise DataError(f"{path}: holds no look at the validation part up to step {last}")
    return looks[-1]


def step_seconds(path: Path) -> float:
    """Median seconds of a step of a run, which other work on the machine disturbs least; 0 for no step."""
    seen = [(0, 0.0), *((row["step"], row["seconds"]) for row in records.read(path) if row["kind"] == "step")]
    times = [float(t - before) / (n - last) for (last, before), (n, t) in pairwise(seen)]
    return float(median(times or [0.0]))
