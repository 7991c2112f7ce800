"""Take a finished comparison into the project: table, rows and, with ``--picture``, the READMEs' picture.

usage: python benchmarks/publish.py RUN NAME [--picture]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from _picture import side_by_side
from _rows import RESULTS

from quatrain import records, report
from quatrain.report import figures
from quatrain.report.gather import gather

PICTURE = Path(__file__).parents[1] / "docs" / "compare.svg"
_FACTS = (
    "test_loss",
    "test_bits_per_byte",
    "test_bits_per_character",
    "valid_loss",
    "test_items",
    "test_total_items",
    "tokens",
    "tokens_per_second",
    "peak_memory_bytes",
)


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--picture", action="store_true")
    asked = parser.parse_args()
    rows = publish(asked.run, asked.name)
    if asked.picture:
        PICTURE.write_text(_picture(rows), "utf-8")
    sys.stdout.write(report.markdown(rows))


def publish(run: Path, name: str, note: str = "") -> list[dict[str, Any]]:
    """Write ``results/<name>.md`` and ``.jsonl`` of a finished comparison; returns its rows."""
    rows = list(records.read(run / "records.jsonl"))
    about = next(row for row in rows if row["kind"] == "comparison")
    head = f"`{about['command']}`\n\n" + (f"{note}\n\n" if note else "")
    words = report.summary(rows)
    told = [f"- {label}: {text}" for label, text in words.facts if label in ("How sure", "Baselines")]
    closing = "\n".join(["", f"**{words.headline}**", "", *told, ""]).replace("\N{NO-BREAK SPACE}", " ")
    (RESULTS / f"{name}.md").write_text(head + report.markdown(rows) + closing, "utf-8")
    lines = [*_results(rows, about), *_steps(rows, about)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
    (RESULTS / f"{name}.jsonl").write_text(text, "utf-8")
    return rows


def _common(about: dict[str, Any]) -> dict[str, Any]:
    machine = about["machine"]
    return {
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads",
        "versions": about["versions"],
        "commit": about["commit"],
        "command": about["command"],
    }


def _results(rows: list[dict[str, Any]], about: dict[str, Any]) -> list[dict[str, Any]]:
    case = f"{about['data']['name']} P{about['params_target']}"
    first = about.get("primary") or {"name": "nats", "says": "nats per token"}
    own = [
        {
            "op": "compare",
            "impl": f"baseline:{row['name']}",
            "case": case,
            "dtype": "float64",
            "mode": "test",
            "value": row.get("metrics", {}).get(first["name"], row.get("test_loss")),
            "unit": first["says"],
            **{name: row[name] for name in ("metrics", *_FACTS) if name in row},
            **_common(about),
        }
        for row in rows
        if row["kind"] == "baseline"
    ]
    return own + [
        {
            "op": "compare",
            "impl": f"quatrain:{row['mixer']}",
            "case": f"{case} seed {row['seed']}" + " equal time" * (row.get("budget") == "time"),
            "dtype": "float32",
            "mode": "training",
            "value": row.get("metrics", {}).get(first["name"], row["test_loss"]),
            "unit": first["says"],
            **{name: row[name] for name in ("metrics", *_FACTS) if name in row},
            **_common(about),
        }
        for row in rows
        if row["kind"] == "result" and row["status"] == "ok"
    ]


def _steps(rows: list[dict[str, Any]], about: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "op": "generate",
            "impl": f"quatrain:{row['mixer']}",
            "case": f"B1 P{about['params_target']} context {row['context']}",
            "dtype": "float32",
            "mode": "step",
            "ms": row["ms_per_token"],
            "state_bytes": row["state_bytes"],
            **_common(about),
        }
        for row in rows
        if row["kind"] == "step_cost"
    ]


def _picture(rows: list[dict[str, Any]]) -> str:
    """Loss, latency and state side by side."""
    comparison = gather(rows)
    drawn = [figures.loss_by_tokens(comparison), figures.latency(comparison), figures.state(comparison)]
    panels = [(figure.title, figure.panels[0][1]) for figure in drawn]
    return side_by_side(panels, [item.style for item in drawn[0].legend])


if __name__ == "__main__":
    main()
