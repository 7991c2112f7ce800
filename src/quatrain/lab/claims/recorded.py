"""Results of training that ship with the package, for the rows that a quarter of an hour cannot train.

``records/*.jsonl`` holds rows as ``benchmarks/results`` does, written from runs of `quatrain.lab.paper`::

    {"op": "parity", "impl": "quatrain:s6", "value": 0.998, "unit": "token accuracy", "length": 256,
     "trained": 40, "seed": 0, "params": 74000, "reduced": "", "machine": "...", "date": "2026-11-25",
     "versions": {...}, "commit": "...", "command": "..."}

``length`` is what was tested, ``trained`` the longest that was trained on; ``reduced`` says how the settings
are smaller than the published ones. In a run's own records they are rows "score" with task, model, mixer (its
architecture: "s6" of "s6-n64") and metric in the place of op, impl and unit, ``at`` for the length tested and
``length`` for the one trained.
"""

import json
import re
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from statistics import fmean
from typing import Any

from quatrain import records
from quatrain.errors import DataError
from quatrain.lab.claims.claim import NOT_YET, Found, Row, Rows, Verdict
from quatrain.lab.claims.words import NAMES
from quatrain.lab.claims.words import length as of_length
from quatrain.lab.paper.metric import value_of

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
    "raw_audio",
)
SOLVED, UNSOLVED = 0.95, 0.75  # token accuracies of a task that is solved, and of one that is not
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
            task, model, metric = row["op"], row["impl"].removeprefix("quatrain:"), row["unit"]
            kept = {key: row[key] for key in _KEPT if key in row}
            at, trained = int(row["length"]), int(row["trained"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path}, line {number}: is not a row of results") from None
        about = {"task": task, "model": model, "mixer": base(model), "metric": metric}
        found.append((SCORE, {**about, "at": at, "length": trained, **kept}))
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
            mine = {"model": row["mixer"], "mixer": base(row["mixer"]), "params": params.get(row["mixer"])}
            mine |= {"seed": row["seed"], "at": row["length"], "value": value_of(row, metric)}
            found.append((SCORE, {**same, **mine}))
    return found


def base(name: str) -> str:
    """The architecture of a recipe's model: attention of ``attention-2p``."""
    return re.split(r"[^a-z0-9]", name)[0]


class Scores:
    """The scores of one task: the mean over seeds by model and length tested.

    A recipe's main model of an architecture has its name, "s6"; others have one behind it, "s6-n64".
    """

    def __init__(self, found: Found, task: str, metric: str = "") -> None:
        self.rows: list[Row] = [
            row
            for row in found.get(SCORE, ())
            if row["task"] == task and row["value"] is not None and metric in ("", row["metric"])
        ]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def models(self) -> list[str]:
        """The models that have a score, in the order of the records."""
        return list(dict.fromkeys(_model(row) for row in self.rows))

    def at(self, model: str) -> dict[int, list[float]]:
        """Values of the seeds by length tested."""
        found: dict[int, list[float]] = {}
        for row in self.rows:
            if _model(row) == model:
                found.setdefault(int(row["at"]), []).append(float(row["value"]))
        return dict(sorted(found.items()))

    def farthest(self, model: str) -> float | None:
        """The mean over seeds at the greatest length tested; None without a score."""
        found = self.at(model)
        return fmean(found[max(found)]) if found else None

    def trained(self) -> int:
        """The length of training; 0 where the records do not tell."""
        return max((int(row.get("length") or 0) for row in self.rows), default=0)

    def longest(self) -> int:
        """The greatest length that anybody was tested at; 0 without a score."""
        return max((int(row["at"]) for row in self.rows), default=0)

    def mean(self, model: str, at: int) -> float | None:
        """The mean over seeds at one length; None without a score."""
        found = self.at(model).get(at)
        return fmean(found) if found else None

    def listed(self, show: Any, at: int = 0) -> str:
        """``Mamba 99.8 %, S4D 18.3 %``: everybody's mean at length ``at``, or at the greatest length that it
        was tested at.
        """
        parts, longest = [], self.longest()
        for model in self.models():
            own = at or max(self.at(model))
            value = self.mean(model, own)
            if value is not None:
                where = "" if own == (at or longest) else f" at {of_length(own)}"
                parts.append(f"{called(model)} {show(value)}{where}")
        return ", ".join(parts)

    def alike(self) -> list[Row]:
        """The rows at the greatest length at which all of them were tested; none where there is none."""
        common = set.intersection(*(set(self.at(model)) for model in self.models())) if self.rows else set()
        return [row for row in self.rows if common and int(row["at"]) == max(common)]

    def source(self) -> str:
        """How many seeds, machine, date and what is reduced, in a sentence; several are all named."""
        machines = _each(
            f"{row.get('machine', 'unknown machine')}, {row.get('date', '')}" for row in self.rows
        )
        reduced = _each(str(row.get("reduced") or "") for row in self.rows)
        less = f"; reduced: {'; '.join(reduced)}" if reduced else ""
        return f" ({self.seeds()}; recorded: {'; '.join(machines)}{less})"

    def seeds(self) -> str:
        """How many seeds the means are of, at the greatest length of each model: ``one seed each``."""
        by: dict[int, list[str]] = {}
        for model in self.models():
            found = self.at(model)
            by.setdefault(len(found[max(found)]), []).append(called(model))
        if len(by) == 1:
            return f"{_seeds(*by)} each"
        return ", ".join(f"{_seeds(count)} of {' and '.join(by[count])}" for count in sorted(by))


def called(model: str) -> str:
    """A model in words: "Mamba", "Mamba (s6-n64)"."""
    name = NAMES.get(base(model), model)
    return name if base(model) == model else f"{name} ({model})"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _model(row: Row) -> str:
    return str(row.get("model") or row["mixer"])


def _each(values: Iterator[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]


def absent(*tasks: str) -> Verdict:
    """The verdict of a row whose task nobody has trained yet."""
    return Verdict(NOT_YET, f"No record of {' and '.join(tasks)} ships with this version.")


def need(scores: Scores, models: Sequence[str]) -> bool:
    """Whether all of these have a score."""
    return all(scores.farthest(model) is not None for model in models)
