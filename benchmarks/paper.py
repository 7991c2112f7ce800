"""Take a finished reproduction into the project: results/paper-<task>.jsonl and .md.

usage: python benchmarks/paper.py RUN
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from _rows import RESULTS, write

from quatrain import records
from quatrain.lab.paper.metric import value_of
from quatrain.report.reproduction import reproduction


def main() -> None:
    """Write the rows and the table of ``RUN``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    rows = list(records.read(parser.parse_args().run / "records.jsonl"))
    about = next(row for row in rows if row["kind"] == "paper")
    found = reproduction(rows)
    name = f"paper-{about['task'].replace('_', '-')}"
    head = f"`{about['command']}`, {_machine(about)}\n\n"
    (RESULTS / f"{name}.md").write_text(head + found.markdown, "utf-8")
    write(name, [_row(about, row, rows) for row in rows if row["kind"] == "tested" and row["status"] == "ok"])
    sys.stdout.write(found.markdown)


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
        "command": about["command"],
    }


def _machine(about: dict[str, Any]) -> str:
    machine = about["machine"]
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    return f"{where}, {machine['cores']} cores, {machine['threads']} threads a process"


if __name__ == "__main__":
    main()
