"""Results of training that ship with the package, for the rows that a quarter of an hour cannot train.

``records/*.jsonl`` holds rows "score"::

    {"v": 1, "kind": "score", "task": "selective-copying", "mixer": "s6", "metric": "token accuracy",
     "value": 0.998, "seed": 0, "params": 74000, "length": 4096, "at": 4096, "reduced": "",
     "machine": "...", "date": "2026-11-25", "versions": {...}, "commit": "...", "command": "..."}

``length`` is what the model was trained at and ``at`` what it was tested at; ``reduced`` says how the setting
is smaller than the published one, "" where it is as published.
"""

from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from statistics import fmean
from typing import Any

from quatrain import records
from quatrain.lab.claims.claim import NOT_YET, Found, Row, Rows, Verdict
from quatrain.lab.claims.words import NAMES

SCORE = "score"


def shipped() -> Rows:
    """The rows of every file in ``records/``, for the journal. Raises DataError for a damaged one."""
    found: Rows = []
    with as_file(files("quatrain.lab.claims").joinpath("records")) as folder:
        for path in sorted(Path(folder).glob("*.jsonl")):
            found += rows_of(path)
    return found


def rows_of(path: Path) -> Rows:
    """The rows "score" of one file, without ``v`` and ``kind``."""
    return [
        (SCORE, {key: value for key, value in row.items() if key not in ("v", "kind")})
        for row in records.read(path)
        if row["kind"] == SCORE
    ]


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
                found.setdefault(int(row.get("at") or row.get("length") or 0), []).append(float(row["value"]))
        return dict(sorted(found.items()))

    def farthest(self, mixer: str) -> float | None:
        """The mean over seeds at the greatest length tested; None without a score."""
        found = self.at(mixer)
        return fmean(found[max(found)]) if found else None

    def trained(self) -> int:
        """The length of training; 0 where the records do not tell."""
        return max((int(row.get("length") or 0) for row in self.rows), default=0)

    def listed(self, show: Any) -> str:
        """``Mamba 99.8 %, S4D 18.3 %``: everybody's mean at the greatest length tested."""
        parts = []
        for mixer in self.mixers():
            value = self.farthest(mixer)
            if value is not None:
                parts.append(f"{NAMES.get(mixer, mixer)} {show(value)}")
        return ", ".join(parts)

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
