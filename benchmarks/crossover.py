"""Draw S6's scan beside attention against length from the rows that gpu_model.py wrote.

    python benchmarks/crossover.py

Writes docs/crossover.svg and prints where the scan becomes faster. No GPU is needed.
"""

import json
import re
import sys
from itertools import pairwise
from math import exp, log
from pathlib import Path

from _picture import side_by_side
from _rows import RESULTS

from quatrain.report.charts import Axis, Drawing, Point, lines
from quatrain.report.styles import STYLES

PICTURE = Path(__file__).parents[1] / "docs" / "crossover.svg"
MODES = {"forward": "Forward", "training": "Forward and backward"}
LINES = {
    "s6_scan": STYLES["s6"]._replace(name="S6 scan"),
    "attention": STYLES["attention"]._replace(name="Attention"),
}
Curves = dict[str, dict[int, float]]  # ns per token by length, of each line


def read(mode: str) -> tuple[Curves, set[str]]:
    """The curves of one mode, and the machines that they were measured on."""
    curves: Curves = {name: {} for name in LINES}
    machines = set()
    for line in (RESULTS / "gpu_model.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["op"] == "crossover" and row["mode"] == mode:
            batch, steps = (int(found) for found in re.findall(r"[BT](\d+)", row["case"]))
            curves[row["impl"]][steps] = 1e6 * row["ms"] / (batch * steps)
            machines.add(f"{row['machine']}, {row['versions']}")
    return curves, machines


def crossing(curves: Curves) -> float | None:
    """Length at which the scan becomes faster for good, along straight lines in logarithms; None: nowhere."""
    scan, attention = curves["s6_scan"], curves["attention"]
    gaps = [(log(steps), log(scan[steps] / attention[steps])) for steps in sorted(scan) if steps in attention]
    found = None
    for (x, before), (next_x, after) in pairwise(gaps):
        if before > 0 >= after:
            found = exp(x + (next_x - x) * before / (before - after))
    return found


def main() -> None:
    """Draw and print."""
    panels, every = [], set()
    for mode, title in MODES.items():
        curves, machines = read(mode)
        every |= machines
        at = crossing(curves)
        points = [
            Point(LINES[name].name, float(steps), curve[steps])
            for name, curve in curves.items()
            for steps in sorted(curve)
        ]
        longest = max(curves["s6_scan"])
        ratio = curves["attention"][longest] / curves["s6_scan"][longest]
        told = f"faster from T = {at:,.0f}" if at else "never faster"
        sys.stdout.write(f"{title}: the scan is {told}; at T = {longest:,} by {ratio:,.0f} times\n")
        drawing = Drawing(
            list(LINES.values()),
            points,
            Axis("sequence length T", "contexts"),
            Axis("ns per token", "log"),
            [],
            rule=(at, f"T = {at:,.0f}") if at else None,
        )
        panels.append((title, lines(drawing)))
    sys.stdout.write("".join(f"measured on {machine}\n" for machine in sorted(every)))
    PICTURE.write_text(side_by_side(panels, LINES.values(), 380), "utf-8")


if __name__ == "__main__":
    main()
