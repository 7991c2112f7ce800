"""What a person sees while a model trains: one live panel on a terminal, plain lines elsewhere."""

import itertools
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
_RECENT = 20  # steps over which speed and the shown loss are averaged


class Display:
    """What every display shares: a context manager that on a terminal keeps a live panel, and says lines.

    ``every``: seconds between two lines where there is no terminal. ``panel`` draws what is shown, several
    times a second, and leaves with it; without one the display itself updates ``_live``, which stays.
    """

    def __init__(
        self, console: Console | None, every: float, panel: Callable[[], RenderableType] | None = None
    ) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._every = every
        asked = panel is not None
        self._live = Live(console=self.console, get_renderable=panel, auto_refresh=asked, transient=asked)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class TrainDisplay(Display):
    """Shows the rows of a run (`quatrain.train.loop.train`'s events). A context manager.

    On a terminal a panel that follows every step; elsewhere the first steps and then a line every ``every``
    seconds, so that a log shows progress at all times and stays short.
    """

    def __init__(self, steps: int, console: Console | None = None, every: float = 10.0) -> None:
        super().__init__(console, every)
        self._steps = steps
        self._rows: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._curve: list[float] = []  # loss of every step this process has seen
        self._valid, self._best = "", False
        self._first: tuple[float, int] | None = None  # wall time and step of the first row, for the time left
        self._said = 0.0

    def __call__(self, row: dict[str, Any]) -> None:
        """Take one row: "step", "eval", "note" or "resume"; others are for the records only."""
        kind = row["kind"]
        if kind == "note":
            self.say(f"note: {row['text']}")
        elif kind == "resume":
            self.say(f"going on after step {row['step']:,} of {self._steps:,}")
        elif kind == "step":
            self._step(row)
        elif kind == "eval":
            self._valid, self._best = _look(row), bool(row["best"])
            mark = " (best so far)" if self._best else ""
            if not self.console.is_terminal:
                self.say(f"step {row['step']:,}  validation loss {self._valid}{mark}")

    def _step(self, row: dict[str, Any]) -> None:
        now = time.monotonic()
        self._first = self._first or (now, row["step"])
        self._rows.append(row)
        self._curve.append(row["loss"])
        if self.console.is_terminal:
            self._live.update(self._panel(now), refresh=now - self._said >= 0.1 or row["step"] == self._steps)
            self._said = now if now - self._said >= 0.1 else self._said
        elif now - self._said >= self._every or row["step"] == self._steps:
            self._said = now
            facts = "  ".join(f"{name} {value}" for name, value in self._facts(now))
            self.say(f"step {row['step']:,}/{self._steps:,}  {facts}")

    def _facts(self, now: float) -> list[tuple[str, str]]:
        newest, oldest = self._rows[-1], self._rows[0]
        loss = sum(row["loss"] for row in self._rows) / len(self._rows)
        facts = [("loss", f"{loss:.4f}")]
        if self._valid:
            facts.append(("validation", self._valid))
        spent = newest["seconds"] - oldest["seconds"]
        if spent > 0:
            facts.append(("tokens/s", f"{(newest['tokens'] - oldest['tokens']) / spent:,.0f}"))
        facts.append(("lr", f"{newest['lr']:.2e}"))
        facts.append(("gradient", f"{newest['grad_norm']:.2f}"))
        if "memory_bytes" in newest:
            facts.append(("memory", size(newest["memory_bytes"])))
        assert self._first is not None
        began, first = self._first
        if newest["step"] > first:
            left = (now - began) / (newest["step"] - first) * (self._steps - newest["step"])
            facts.append(("left", duration(left)))
        return facts

    def _panel(self, now: float) -> Group:
        step = self._rows[-1]["step"]
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"step {step:,} of {self._steps:,}"),
            ProgressBar(total=self._steps, completed=step, width=28),
            Text(sparkline(self._curve, 32), style="cyan"),
        )
        facts = Text("  ").join(  # wraps on a narrow terminal, where a table would cut every number
            Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in self._facts(now)
        )
        return Group(head, facts)


def _look(row: dict[str, Any]) -> str:
    """The loss of a look at the validation part, and the metrics of the task."""
    found = row.get("metrics") or {}
    shown = "".join(f" {name} {value:.4f}" for name, value in found.items())
    return f"{row['nats'] if 'nats' in row else row['loss']:.4f}{shown}"


def sparkline(values: list[float], width: int) -> str:
    """The course of ``values`` in at most ``width`` block characters, each the mean of its share."""
    count = min(width, len(values))
    cuts = [len(values) * index // count for index in range(count + 1)] if count else []
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(cuts)]
    if not means:
        return ""
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in means)


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes with a binary unit: ``512 B``, ``3.4 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
