"""What a person sees of a comparison: its progress while it runs, and its result when it is done."""

import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from quatrain import records, report
from quatrain.cli import _data
from quatrain.cli._display import Display, duration, size, sparkline
from quatrain.errors import MissingExtraError

_RECENT = 20  # steps over which the shown loss and speed are averaged


class CompareDisplay(Display):
    """Shows the events of `quatrain.lab.compare.compare`. A context manager.

    On a terminal a panel with what runs now, the losses so far and the time left in all; elsewhere a line for
    every stage and, while a model trains, one every ``every`` seconds.
    """

    def __init__(self, console: Console | None = None, every: float = 10.0) -> None:
        self._said = 0.0
        self._losses: dict[str, dict[str, str]] = {}  # mixer -> learning rate -> validation loss
        self._rows: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._curve: list[float] = []
        self._run: tuple[Any, ...] = ()
        self._began, self._left = time.monotonic(), 0.0
        self._doing, self._unit = "starting", "tokens"
        super().__init__(console, every, self._panel)  # last: the panel is drawn once at once

    def __call__(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        self._left = row.get("left", self._left)
        if kind == "say":
            self._now(row["text"])
        elif kind == "plan":
            self._plan(row)
        elif kind == "stage":
            self._stage(row["stage"])
        elif kind == "step":
            self._step(row)
        elif kind == "trained":
            self._losses.setdefault(row["mixer"], {})[f"{row['lr']:g}"] = f"{row['loss']:.4f}"
            upto = f"{row['step']:,} of {row['steps']:,} steps"
            found = "".join(f", {name} {value:.4f}" for name, value in row["metrics"].items())
            self.say(f"{_what(row)}: validation loss {row['loss']:.4f}{found} after {upto}")
        elif kind == "diverged":
            self._losses.setdefault(row["mixer"], {})[f"{row['lr']:g}"] = "diverged"
            self.say(f"{_what(row)}: diverged: {row['reason']}")

    def _now(self, text: str) -> None:
        """What is being done, as a line where there is no panel to show it."""
        self._doing = text
        self._rows.clear()
        if not self.console.is_terminal:
            self.say(text)

    def _plan(self, row: dict[str, Any]) -> None:
        plan = row["plan"]
        begun = "going on: " if row["resumed"] else ""
        if row["says"]:
            self._unit = "time steps"
            self.say(f"read as {row['says']}")
        shape = f"{plan.tokens:,} {self._unit} in {plan.steps:,} steps for each model"
        rung = f"the learning rate is chosen after {plan.rung_steps:,}"
        if plan.time_steps:
            alike = f"{duration(plan.time_seconds)} of training for each"
            alone = row["parts"][0] == "time"
            rung = f"the learning rate is chosen on the way; {alike}" if alone else f"{rung}; then {alike}"
            shape = "equal training time" if alone else shape
        self.say(f"{begun}{shape}; {rung}; about {duration(row['left'])} left in all")

    def _stage(self, stage: str) -> None:
        what, _, rest = stage.partition("/")
        name = rest.rpartition("/")[0] or rest
        texts = {
            "baselines": "counting for the trivial baselines",
            "test": f"testing {name}",
            "time-test": f"testing {name}, trained for equal time",
            "context": f"measuring {name}: loss by position in long contexts",
            "probes": f"measuring {name}: latency, prefill, reach, a sample",
        }
        if what in texts:
            self._now(f"{texts[what]} ({duration(self._left)} left in all)")

    def _step(self, row: dict[str, Any]) -> None:
        run = (row["mixer"], row["lr"], row["seed"], row.get("budget"))
        if run != self._run:
            self._run = run
            self._rows.clear()
            self._curve.clear()
        self._rows.append(row)
        self._curve.append(row["loss"])
        self._doing = f"training {_what(row)}"
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said >= self._every:
            self._said = now
            facts = "  ".join(f"{name} {value}" for name, value in self._facts())
            self.say(f"{_what(row)}  step {row['step']:,}/{row['last']:,}  {facts}")

    def _facts(self) -> list[tuple[str, str]]:
        rows = self._rows
        loss = sum(row["loss"] for row in rows) / len(rows)
        speed = sum(row["tokens_per_second"] for row in rows) / len(rows)
        return [
            ("loss", f"{loss:.4f}"),
            (f"{self._unit}/s", f"{speed:,.0f}"),
            ("memory", size(rows[-1]["memory_bytes"])),
            ("left in all", duration(self._left)),
        ]

    def _panel(self) -> RenderableType:
        passed = time.monotonic() - self._began
        parts: list[RenderableType] = [Spinner("dots", text=Text(f" {self._doing}"))]
        if self._rows:
            row = self._rows[-1]
            line = Table.grid(padding=(0, 2))
            bar = ProgressBar(total=row["steps"], completed=row["step"], width=28)
            steps = Text(f"step {row['step']:,} of {row['last']:,}")
            line.add_row(steps, bar, Text(sparkline(list(self._curve), 32), style="cyan"))
            facts = Text("  ").join(
                Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in self._facts()
            )
            parts += [line, facts]
        if self._left:
            bar = ProgressBar(total=passed + self._left, completed=passed, width=60)
            parts.append(bar)
        return Group(*parts)


def _what(row: dict[str, Any]) -> str:
    seed = f", seed {row['seed']}" if row["seed"] else ""
    alike = ", equal time" if row.get("budget") == "time" else ""
    return f"{row['mixer']} at learning rate {row['lr']:g}{seed}{alike}"


def show(out: Path, again: bool) -> None:
    """Write table and page, and print the result on stdout. A missing extra costs the page alone."""
    places = [("table", out / "table.md"), ("records", out / "records.jsonl")]
    missing = ""
    try:
        places.append(("report", report.write(out)))
    except MissingExtraError as error:
        missing = str(error)
    rows = list(records.read(out / "records.jsonl"))
    console = Console(file=sys.stdout, highlight=False)
    if again:
        console.print(f"{out} was finished before", markup=False, soft_wrap=True)
    _result(console, rows)
    console.print()
    lines = [(name, str(place)) for name, place in places]
    lines += [("report", f"none: {missing}")] if missing else []
    if best := report.best(rows):
        run = out / best["run"]
        about = next(row for row in rows if row["kind"] == "comparison")
        start = _data.prompt(about["data"].get("tokenizer", ""))
        text = f"quatrain generate {run} --prompt '{start}'"
        lines.append(("try", text if report.task(rows) == "lm" else f"quatrain predict {run} INPUT"))
    for name, text in lines:
        console.print(f"{name + ':':<9}{text}", markup=False, soft_wrap=True)


def _result(console: Console, rows: list[dict[str, Any]]) -> None:
    """The table and what it means, in words."""
    words, table = report.summary(rows), report.table(rows)
    models = len({row["mixer"] for row in rows if row["kind"] == "model"})
    baselines = [f"{row[0]} {row[1]}" for row in table.rows[models:]]
    measure = report.measure(rows)
    console.print()
    timed = report.timed_table(rows)
    if timed.rows:
        console.print("Equal parameters and tokens", style="bold")
    console.print(_side_by_side(table, models))
    if timed.rows:
        console.print("\nEqual parameters and training time", style="bold")
        console.print(_side_by_side(timed, models))
    console.print(f"Baselines, {measure}: {', '.join(baselines)}", markup=False)
    console.print()
    console.print(words.headline, style="bold", markup=False)
    told = [f"{label}: {text}" for label, text in words.facts if label in ("How sure", "Baselines")]
    notes = [row["text"] for row in rows if row["kind"] == "note" and row.get("about") != "baseline"]
    for line in (*told, *words.warnings, *notes):
        console.print(line.replace("\N{NO-BREAK SPACE}", " "), markup=False)
    if chosen := report.advice(rows):
        console.print()
        console.print(f"Which to choose: {chosen}".replace("\N{NO-BREAK SPACE}", " "), markup=False)


def _side_by_side(table: report.Table, models: int) -> Table:
    """Models side by side, a line for each measure: so four of them fit a terminal of 80 columns."""
    shown = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    shown.add_column("", no_wrap=True)
    for row in table.rows[:models]:
        shown.add_column(row[0], justify="right")
    for index, title in enumerate(table.header[1:], 1):
        shown.add_row(title, *(row[index] for row in table.rows[:models]))
    return shown
