"""Results of training that ship with the package, for the rows that a quarter of an hour cannot train.

``records/*.jsonl`` holds rows as ``benchmarks/results`` does, written from runs of `quatrain.lab.paper`::

    {"op": "parity", "impl": "quatrain:s6", "value": 0.998, "unit": "token accuracy", "length": 256,
     "seed": 0, "params": 74000, "reduced": "", "machine": "...", "date": "2026-11-25", "versions": {...},
     "commit": "...", "command": "..."}

``length`` is what was tested; ``reduced`` says how the settings are smaller than the published ones. In a
run's own records they are rows "score" with task, mixer and metric in the place of op, impl and unit, ``at``
for the length tested and ``length`` for the one trained.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from statistics import fmean
from typing import Any

from quatrain import records
from quatrain.errors import ConfigError, DataError
from quatrain.lab.claims.claim import NOT_YET, Found, Row, Rows, Verdict
from quatrain.lab.claims.words import NAMES
from quatrain.lab.claims.words import length as of_length
from quatrain.lab.paper import recipe

SCORE = "score"
TASKS = (
    "adding",
    "copy_memory",
    "selective_copying",
    "induction_heads",
    "wikitext2",
    "parity",
    "mqar",
    "string_copying",
)
_KEPT = ("value", "seed", "params", "reduced", "machine", "date", "versions", "commit", "command")


def shipped() -> Rows:
    """The rows of every file in ``records/``, for the journal. Raises DataError for a damaged one."""
    found: Rows = []
    with as_file(files("quatrain.lab.claims").joinpath("records")) as folder:
        for path in sorted(Path(folder).glob("*.jsonl")):
            found += rows_of(path)
    return found


def rows_of(path: Path) -> Rows:
    """The rows of one file as rows "score". Raises DataError that names file and line."""
    found: Rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            task, mixer, metric = row["op"], row["impl"].removeprefix("quatrain:"), row["unit"]
            kept = {key: row[key] for key in _KEPT if key in row}
            at = int(row["length"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path}, line {number}: is not a row of results") from None
        about = {"task": task, "mixer": _base(mixer), "metric": metric, "at": at}
        found.append((SCORE, {**about, "length": trained_at(task, bool(kept.get("reduced"))), **kept}))
    return found


def from_run(out: Path) -> Rows:
    """The rows "score" of a finished reproduction. Raises DataError, OSError."""
    rows = list(records.read(out / "records.jsonl"))
    about = next(row for row in rows if row["kind"] == "paper")
    params = {row["mixer"]: row["params"] for row in rows if row["kind"] == "model"}
    metric, machine = about["recipe"]["test"]["metric"], about["machine"]
    device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    same = {key: about[key] for key in ("task", "reduced", "versions", "commit", "command")}
    same |= {"metric": metric.replace("_", " "), "machine": f"{device}, {machine['cores']} cores"}
    same |= {"length": max(about["recipe"]["train"]["lengths"]), "date": str(about.get("started", ""))[:10]}
    found: Rows = []
    for row in rows:
        if row["kind"] == "tested" and row["status"] == "ok":
            value = math.exp(row["loss"]) if metric == "perplexity" else row[metric]
            mine = {"mixer": _base(row["mixer"]), "params": params.get(row["mixer"]), "seed": row["seed"]}
            found.append((SCORE, {**same, **mine, "at": row["length"], "value": value}))
    return found


def trained_at(task: str, reduced: bool) -> int:
    """The longest sequence that a task's recipe trains on; 0 for a task without a recipe."""
    try:
        return recipe.load(task, reduced=reduced, source="FILE").train.high
    except ConfigError:
        return 0


def _base(name: str) -> str:
    """The architecture of a recipe's entry: attention of ``attention-2p``."""
    return re.split(r"[^a-z0-9]", name)[0]


class Scores:
    """The scores of one task: the mean over seeds by architecture and length tested."""

    def __init__(self, found: Found, task: str, metric: str = "") -> None:
        self.rows: list[Row] = [
            row
            for row in found.get(SCORE, ())
            if row["task"] == task and row["value"] is not None and metric in ("", row["metric"])
        ]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def mixers(self) -> list[str]:
        """The architectures that have a score, in the order of the records."""
        return list(dict.fromkeys(row["mixer"] for row in self.rows))

    def at(self, mixer: str) -> dict[int, list[float]]:
        """Values of the seeds by length tested."""
        found: dict[int, list[float]] = {}
        for row in self.rows:
            if row["mixer"] == mixer:
                found.setdefault(int(row["at"]), []).append(float(row["value"]))
        return dict(sorted(found.items()))

    def farthest(self, mixer: str) -> float | None:
        """The mean over seeds at the greatest length tested; None without a score."""
        found = self.at(mixer)
        return fmean(found[max(found)]) if found else None

    def trained(self) -> int:
        """The length of training; 0 where the records do not tell."""
        return max((int(row.get("length") or 0) for row in self.rows), default=0)

    def longest(self) -> int:
        """The greatest length that anybody was tested at; 0 without a score."""
        return max((int(row["at"]) for row in self.rows), default=0)

    def listed(self, show: Any) -> str:
        """``Mamba 99.8 %, S4D 18.3 %``: everybody's mean at the greatest length it was tested at."""
        parts, longest = [], self.longest()
        for mixer in self.mixers():
            value, own = self.farthest(mixer), max(self.at(mixer))
            if value is not None:
                where = "" if own == longest else f" at {of_length(own)}"
                parts.append(f"{NAMES.get(mixer, mixer)} {show(value)}{where}")
        return ", ".join(parts)

    def alike(self) -> list[Row]:
        """The rows at the greatest length at which all of them were tested; none where there is none."""
        common = set.intersection(*(set(self.at(mixer)) for mixer in self.mixers())) if self.rows else set()
        return [row for row in self.rows if common and int(row["at"]) == max(common)]

    def source(self) -> str:
        """Machine, date and what is reduced, in a sentence; several are all named."""
        machines = _each(
            f"{row.get('machine', 'unknown machine')}, {row.get('date', '')}" for row in self.rows
        )
        reduced = _each(str(row.get("reduced") or "") for row in self.rows)
        return f" (recorded: {'; '.join(machines)}{'; reduced: ' if reduced else ''}{'; '.join(reduced)})"


def _each(values: Iterator[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]


def absent(*tasks: str) -> Verdict:
    """The verdict of a row whose task nobody has trained yet."""
    return Verdict(NOT_YET, f"No record of {' and '.join(tasks)} ships with this version.")


def need(scores: Scores, mixers: Sequence[str]) -> bool:
    """Whether all of these have a score."""
    return all(scores.farthest(mixer) is not None for mixer in mixers)
