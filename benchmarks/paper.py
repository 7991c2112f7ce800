"""Take a finished reproduction into the project: results/paper-<task>.jsonl and .md.

usage: python benchmarks/paper.py RUN [--ship]
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from _rows import RESULTS, published, write

from quatrain import records
from quatrain.lab.paper.metric import value_of
from quatrain.report.reproduction import reproduction

SHIPPED = Path(__file__).parents[1] / "src" / "quatrain" / "lab" / "claims" / "records"


def main() -> None:
    """Write the rows and the table of ``RUN``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ship", action="store_true", help="also into the records that the package brings")
    given = parser.parse_args()
    rows = list(records.read(given.run / "records.jsonl"))
    about = next(row for row in rows if row["kind"] == "paper")
    found = reproduction(rows)
    name = f"paper-{about['task'].replace('_', '-')}"
    head = f"`{_command(about)}`, {_machine(about)}\n\n"
    (RESULTS / f"{name}.md").write_text(head + found.markdown, "utf-8")
    write(name, results(rows))
    if given.ship:
        SHIPPED.mkdir(exist_ok=True)
        shutil.copy(RESULTS / f"{name}.jsonl", SHIPPED)
    sys.stdout.write(found.markdown)


def results(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of ``results`` from those of a run."""
    about = next(row for row in rows if row["kind"] == "paper")
    return [_row(about, row, rows) for row in rows if row["kind"] == "tested" and row["status"] == "ok"]


def _row(about: dict[str, Any], row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    metric = about["recipe"]["test"]["metric"]
    cell = next(
        one
        for one in rows
        if one["kind"] == "cell" and all(one[key] == row[key] for key in ("mixer", "lr", "seed"))
    )
    return {
        "op": about["task"],
        "impl": f"quatrain:{row['mixer']}",
        "case": f"T {row['length']} seed {row['seed']}" + " reduced" * bool(about["reduced"]),
        "dtype": about["recipe"]["train"]["dtype"],
        "mode": "test",
        "value": value_of(row, metric),
        "unit": metric.replace("_", " "),
        "length": row["length"],
        "trained": max(about["recipe"]["train"]["lengths"]),
        "seed": row["seed"],
        "lr": row["lr"],
        **{
            key: row[key]
            for key in ("loss", "token_accuracy", "sequence_accuracy", "sequences")
            if key in row
        },
        **{key: cell[key] for key in ("params", "steps", "tokens", "train_seconds", "valid_loss")},
        "reduced": about["reduced"],
        "recipe_digest": about["digest"],
        "machine": _machine(about),
        "versions": about["versions"],
        "date": about.get("started", "")[:10],
        "commit": about["commit"],
        "command": _command(about),
    }


def _command(about: dict[str, Any]) -> str:
    return published(shlex.split(about["command"]))


def _machine(about: dict[str, Any]) -> str:
    machine = about["machine"]
    device, cores = str(machine["device"]), f"{machine['cores']} cores"
    if device == "cpu":
        return f"{machine['cpu']}, {cores}, {machine['threads']} threads a process"
    return f"{device.removeprefix('cuda (').removesuffix(')')}, {cores}"


if __name__ == "__main__":
    main()
