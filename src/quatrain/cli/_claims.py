"""What a person sees of ``quatrain claims``: its progress while it runs, and the verdicts when it is done."""

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from quatrain import records
from quatrain.cli._display import Display, duration
from quatrain.errors import MissingExtraError

_COLOURS = {"agrees": "green", "disagrees": "yellow", "within noise": "cyan"}


class ClaimsDisplay(Display):
    """Shows the events of `quatrain.lab.claims.run.run`. A context manager.

    On a terminal a panel that follows every measurement; elsewhere a line for each, and one every ``every``
    seconds while it runs.
    """

    def __init__(self, console: Console | None = None, every: float = 10.0) -> None:
        self._said = time.monotonic()
        self._says, self._done, self._of, self._share, self._left = "starting", 0, 1, 0.0, 0.0
        super().__init__(console, every, self._panel)  # last: the panel is drawn once at once

    def __call__(self, row: dict[str, Any]) -> None:
        self._left = row["left"]
        if row["kind"] == "stage":
            self._says, self._done, self._of, self._share = row["says"], row["done"], row["of"], 0.0
            if not self.console.is_terminal:
                self._tell(f"{row['says']} ({row['done'] + 1} of {row['of']}")
        elif row["kind"] == "share":
            self._share = row["share"]
            late = time.monotonic() - self._said >= self._every
            if late and not self.console.is_terminal:
                self._tell(f"  {100 * self._share:.0f} % of {self._says} (")

    def _tell(self, text: str) -> None:
        self._said = time.monotonic()
        joint = "" if text.endswith("(") else ", "
        self.say(f"{text}{joint}about {duration(self._left)} left)")

    def _panel(self) -> Group:
        head = Table.grid(padding=(0, 2))
        done = self._done + self._share
        head.add_row(
            Spinner("dots"),
            Text(self._says),
            ProgressBar(total=self._of, completed=done, width=28),
            Text(f"about {duration(self._left)} left", style="dim"),
        )
        return Group(head)


def show(out: Path, again: bool) -> None:
    """Write the page and print the verdicts, the table of them and where the page is."""
    from quatrain.report import claims

    found = claims.gather(records.read(out / "records.jsonl"))
    console = Console(file=sys.stdout, highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Belief", ratio=5, overflow="fold")
    table.add_column("Verdict", no_wrap=True)
    table.add_column("Measured", ratio=7, overflow="fold")
    for row in found["verdict"]:
        word = str(row["verdict"])
        table.add_row(
            Text(str(row["belief"])),
            Text(f"{claims.MARKS[word]} {word}", style=_COLOURS.get(word, "dim")),
            Text(str(row["finding"])),
        )
        table.add_row("", "", "")
    if again:
        console.print("measured before; nothing was done again", markup=False)
    console.print(table)
    console.print(f"{claims.headline(found)}.", markup=False, soft_wrap=True)
    try:
        page = claims.write(out)
        console.print(f"page: {page}", markup=False, soft_wrap=True)
    except MissingExtraError as error:
        console.print(f"no page: {error}; the table: {out / 'table.md'}", markup=False, soft_wrap=True)
