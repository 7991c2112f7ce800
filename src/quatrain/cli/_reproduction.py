"""What a person sees of a reproduction: the cells while they run, and the table at the end."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from quatrain import records
from quatrain._files import write_atomic
from quatrain.cli._display import Display, duration
from quatrain.lab.paper.cells import Job
from quatrain.lab.paper.reproduce import RECORDS, Outcome
from quatrain.report.reproduction import reproduction


class ReproduceDisplay(Display):
    """Shows the events of `quatrain.lab.paper.reproduce.reproduce`. A context manager.

    On a terminal a panel with a line for each cell under way; elsewhere a line when a cell ends, and one for
    all that run every ``every`` seconds.
    """

    def __init__(self, console: Console | None = None, every: float = 10.0) -> None:
        self._said = time.monotonic()
        self._running: dict[str, dict[str, Any]] = {}
        self._left = 0
        super().__init__(console, every, self._panel)  # last: the panel is drawn once at once

    def __call__(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        if kind == "plan":
            self._left = row["left"]
            return
        job: Job = row["job"]
        if kind == "job":
            self._left = row["left"]
            self._running[job.key] = {"job": job, "began": time.monotonic(), "steps": 0}
        elif kind == "done":
            self._running.pop(job.key, None)
            self.say(f"{job.says}: {_outcome(row)}")
        elif kind in ("step", "eval", "resume"):
            now = self._running.setdefault(job.key, {"job": job, "began": time.monotonic()})
            if kind != "step":
                now["look"] = row.get("metrics", {}).get("token_accuracy", row.get("loss"))
            now |= {"step": row["step"], "steps": row["steps"], "loss": row.get("loss", now.get("loss"))}
            now.setdefault("first", (row["step"], time.monotonic()))
        if not self.console.is_terminal and self._running and time.monotonic() - self._said >= self._every:
            self._said = time.monotonic()
            self.say("; ".join(self._lines()))

    def _lines(self) -> list[str]:
        return [_progress(now) for now in self._running.values()]

    def _panel(self) -> Group:
        head = Text(f"{self._left} cells and tests left that are known of", style="dim")
        return Group(head, *(Text(line) for line in self._lines()))


def _progress(now: dict[str, Any]) -> str:
    job: Job = now["job"]
    if "step" not in now:
        return f"{job.says}: {duration(time.monotonic() - now['began'])}"
    text = f"{job.says}: step {now['step']:,} of {now['steps']:,}"
    if now.get("loss") is not None:
        text += f", loss {now['loss']:.4f}"
    first, began = now["first"]
    if now["step"] > first:
        left = (time.monotonic() - began) / (now["step"] - first) * (now["steps"] - now["step"])
        text += f", {duration(left)} left"
    return text


def _outcome(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    if "valid_loss" in row:
        accuracy = row.get("valid_token_accuracy")
        shown = f", token accuracy {accuracy:.4f}" if accuracy is not None else ""
        return f"trained in {duration(row['train_seconds'])}, validation loss {row['valid_loss']:.4g}{shown}"
    accuracy = row.get("token_accuracy")
    shown = f"token accuracy {accuracy:.4f}, " if accuracy is not None else ""
    return f"{shown}loss {row['loss']:.4g} on {row['sequences']} sequences"


def show(outcome: Outcome, names: Sequence[str], seeds: int) -> bool:
    """Write ``table.md``, which holds all models, and print the table of ``names`` on stdout, cells that
    failed and their reasons below it.

    Returns whether a model got no number because it sees the future.
    """
    rows = list(records.read(outcome.out / RECORDS))
    found = reproduction(rows, names=names, seeds=seeds, failed=outcome.failed)
    place = outcome.out / "table.md"
    whole = reproduction(rows, failed=outcome.failed) if names or seeds else found
    write_atomic(place, whole.markdown)
    console = Console(file=sys.stdout, highlight=False)
    if outcome.again:
        console.print(f"{outcome.out} was finished before", markup=False, soft_wrap=True)
    console.print(f"\n{found.title}", style="bold", markup=False)
    for line in found.about:
        console.print(line, markup=False)
    console.print(_grid((found.header, *found.rows)))
    if found.lengths:
        console.print(_grid(found.lengths))
    for note in found.notes:
        console.print(note, markup=False)
    console.print(f"\ntable:   {place}\nrecords: {outcome.out / RECORDS}", markup=False, soft_wrap=True)
    return any(model.refused for model in found.models)


def _grid(lines: Sequence[Sequence[str]]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, title in enumerate(lines[0]):
        grid.add_column(Text(title), justify="left" if index == 0 else "right")
    for line in lines[1:]:
        grid.add_row(*(Text(cell) for cell in line))
    return grid
