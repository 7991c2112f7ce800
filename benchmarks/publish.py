"""Take a finished comparison into the project: table, rows and, with ``--picture``, the READMEs' picture.

usage: python benchmarks/publish.py RUN NAME [--picture]
"""

import argparse
import json
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

import vl_convert
from _rows import RESULTS

from quatrain import records, report
from quatrain.report import charts, figures
from quatrain.report.gather import gather
from quatrain.report.styles import OUTLINES

PICTURE = Path(__file__).parents[1] / "docs" / "compare.svg"
_FACTS = ("test_loss", "test_bits_per_byte", "valid_loss", "tokens", "tokens_per_second", "peak_memory_bytes")


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--picture", action="store_true")
    asked = parser.parse_args()
    rows = list(records.read(asked.run / "records.jsonl"))
    about = next(row for row in rows if row["kind"] == "comparison")
    head = f"`{about['command']}`\n\n"
    (RESULTS / f"{asked.name}.md").write_text(head + report.markdown(rows), "utf-8")
    lines = [json.dumps(row) + "\n" for row in [*_results(rows, about), *_steps(rows, about)]]
    (RESULTS / f"{asked.name}.jsonl").write_text("".join(lines), "utf-8")
    if asked.picture:
        PICTURE.write_text(_picture(rows), "utf-8")
    sys.stdout.write(report.markdown(rows))


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
    return [
        {
            "op": "compare",
            "impl": f"quatrain:{row['mixer']}",
            "case": f"{case} seed {row['seed']}" + " equal time" * (row.get("budget") == "time"),
            "dtype": "float32",
            "mode": "training",
            "value": row["test_loss"],
            "unit": "nats per token",
            **{name: row[name] for name in _FACTS if name in row},
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
    """Loss, latency and state side by side, on white, under one legend."""
    comparison = gather(rows)
    drawn = [figures.loss_by_tokens(comparison), figures.latency(comparison), figures.state(comparison)]
    parts, left = [], 12
    for key, figure in enumerate(drawn):
        (_, spec) = figure.panels[0]
        still = {name: value for name, value in spec.items() if name != "autosize"}
        svg: str = vl_convert.vegalite_to_svg(
            {**still, "width": 230, "height": 220, "title": figure.title}, vl_version=charts.schema_version()
        )
        svg = re.sub(r'(id="|url\(#)(clip|gradient)', rf"\g<1>{key}-\g<2>", svg)
        width = float(re.search(r'width="([\d.]+)"', svg)[1])  # type: ignore[index]
        parts.append(svg.replace("<svg", f'<svg x="{left}" y="40"', 1))
        left += round(width) + 18
    at = 16
    for item in drawn[0].legend:
        outline, colour = OUTLINES[item.style.shape], item.style.colour
        mark = f'<path transform="translate({at} 14)" d="{outline}" fill="{colour}"/>'
        parts.append(f'{mark}<text x="{at + 18}" y="25">{escape(item.style.name)}</text>')
        at += 50 + 8 * len(item.style.name)
    size = f'width="{left}" height="340" viewBox="0 0 {left} 340"'
    font = 'font-family="system-ui, sans-serif" font-size="13" color="#24292f" fill="#24292f"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return "".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>', paper, *parts, "</svg>\n"])


if __name__ == "__main__":
    main()
